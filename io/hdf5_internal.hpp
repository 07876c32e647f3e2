/// What the hdf5*.cpp files share: owned ids, types, error texts. Included by them alone, because
/// it shows hdf5.h. Everything here expects the caller to hold a Lock.
#pragma once

#include <hdf5.h>

#include <optional>
#include <string>

#include "io/hdf5.hpp"
#include "parallel/error.hpp"
#include "parallel/handle.hpp"

namespace longspan::io::hdf5 {

static_assert(std::is_same_v<hid_t, std::int64_t>, "File keeps a hid_t without seeing hdf5.h");

/// Any object id: H5Idec_ref closes whatever kind it is.
inline void release_id(hid_t id) {
  H5Idec_ref(id);
}
using Id = Handle<hid_t, H5I_INVALID_HID, release_id>;

/// Throws Error "path: what: <what the library's error stack says, in words>" and clears the stack.
[[noreturn]] void fail_hdf5(const std::string& path, const std::string& what, ExitStatus status);

/// Little-endian, which is also the type in memory: all supported machines are.
Id make_type(DType dtype);
std::optional<DType> dtype_of(hid_t type);
std::string describe_type(hid_t type);
/// Fixed length, padded with NUL, UTF-8.
Id make_string_type(std::size_t length);
Id make_space(const Shape& shape);
Shape shape_of(hid_t space);

/// The first prefix of `name` that does not exist; empty if all do. H5Lexists fails unless the
/// parents exist.
std::string missing_prefix(hid_t file, const std::string& name);
/// Whether the last link of `name` is the plain name of an object in this file.
bool is_hard_link(hid_t file, const std::string& name);
/// Throws Error (damaged) unless every existing link on the way to `name` is one.
void require_hard_links(hid_t file, const std::string& path, const std::string& name);
/// Both throw Error (damaged) naming the object, and the first folder of its path that is missing.
Id open_dataset(hid_t file, const std::string& path, const std::string& name);
Id open_object(hid_t file, const std::string& path, const std::string& name);
/// Creates `name` with its groups. No time stamps: the same content gives the same bytes.
Id create_dataset(hid_t file, const std::string& path, const std::string& name, hid_t type,
                  hid_t space, Id properties);
/// Throws Error (damaged) naming the first compression filter that this library lacks.
void require_filters(hid_t dataset, const std::string& path, const std::string& name);

}  // namespace longspan::io::hdf5
