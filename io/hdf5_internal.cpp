#include "io/hdf5_internal.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "io/file.hpp"
#include "parallel/error.hpp"

namespace longspan::io::hdf5 {
namespace {

/// The descriptions of the error stack, innermost call first; clears it.
std::vector<std::string> take_error_stack() {
  std::vector<std::string> texts;
  const auto collect = [](unsigned, const H5E_error2_t* frame, void* out) -> herr_t {
    if (frame->desc != nullptr)
      static_cast<std::vector<std::string>*>(out)->emplace_back(frame->desc);
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, collect, &texts);
  H5Eclear2(H5E_DEFAULT);
  return texts;
}

const std::string* find_text(const std::vector<std::string>& texts, std::string_view part) {
  for (const auto& text : texts)
    if (text.find(part) != std::string::npos) return &text;
  return nullptr;
}

/// The system's reason, if there is one: "..., errno = 28, error message = 'No space left on
/// device', ...". 0 = none.
int errno_in(const std::vector<std::string>& texts) {
  const auto* text = find_text(texts, "errno = ");
  return text == nullptr ? 0 : std::atoi(text->c_str() + text->find("errno = ") + 8);
}

/// What a person wants to read. Neither end of the stack is always the useful one, so known texts
/// are looked for first.
std::string explain(const std::vector<std::string>& texts) {
  const auto find = [&](std::string_view part) { return find_text(texts, part); };
  if (const auto* text = find("truncated file"))
    return "file is truncated: " + text->substr(text->find(':') + 2);
  if (find("file signature not found")) return "not an HDF5 file";
  if (find("incorrect metadata checksum"))
    return "damaged: the checksum of its metadata does not match";
  if (find("already open for write"))
    return "a writer died or is still writing this file (a finished file never shows this)";
  if (find("unable to lock file"))
    return "file is locked by another process (or the file system has no locks: set "
           "HDF5_USE_FILE_LOCKING=FALSE)";
  if (const auto* text = find("required filter"))
    return *text +
           " (compression plugin not installed; rewrite the file without it, e.g. h5repack -f "
           "NONE)";
  if (const int number = errno_in(texts)) return std::strerror(number);
  return texts.empty() ? "unknown HDF5 error" : texts.front();
}

constexpr std::array kAllTypes = {DType::kF32, DType::kBF16, DType::kU8,  DType::kU16, DType::kU32,
                                  DType::kI32, DType::kI64,  DType::kU64, DType::kF64};

}  // namespace

[[noreturn]] void fail_hdf5(const std::string& path, const std::string& what, ExitStatus status) {
  const auto texts = take_error_stack();
  if (status == ExitStatus::kDamaged) fail_damaged("{}: {}: {}", path, what, explain(texts));
  const int number = errno_in(texts);
  if (status == ExitStatus::kFailed && number != 0 && !find_text(texts, "unable to lock file"))
    fail_errno(path, what, number);
  throw Error(path + ": " + what + ": " + explain(texts), status);
}

Id make_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return Id(H5Tcopy(H5T_IEEE_F32LE));
    case DType::kU8:
      return Id(H5Tcopy(H5T_STD_U8LE));
    case DType::kU16:
      return Id(H5Tcopy(H5T_STD_U16LE));
    case DType::kU32:
      return Id(H5Tcopy(H5T_STD_U32LE));
    case DType::kI32:
      return Id(H5Tcopy(H5T_STD_I32LE));
    case DType::kI64:
      return Id(H5Tcopy(H5T_STD_I64LE));
    case DType::kU64:
      return Id(H5Tcopy(H5T_STD_U64LE));
    case DType::kF64:
      return Id(H5Tcopy(H5T_IEEE_F64LE));
    case DType::kBF16:
      break;
  }
  // Size before fields, or precision before fields, is refused: this order is the one that works.
  Id type(H5Tcopy(H5T_IEEE_F32LE));
  H5Tset_fields(type.get(), 15, 7, 8, 0, 7);
  H5Tset_precision(type.get(), 16);
  H5Tset_size(type.get(), 2);
  H5Tset_ebias(type.get(), 127);
  return type;
}

std::optional<DType> dtype_of(hid_t type) {
  for (const DType dtype : kAllTypes)
    if (H5Tequal(type, make_type(dtype).get()) > 0) return dtype;
  return std::nullopt;
}

std::string describe_type(hid_t type) {
  if (const auto dtype = dtype_of(type)) return std::string(name_of(*dtype));
  const auto kind = H5Tget_class(type);
  const auto bits = H5Tget_size(type) * 8;
  const char* order = H5Tget_order(type) == H5T_ORDER_BE ? "big-endian " : "";
  switch (kind) {
    case H5T_INTEGER:
      return fmt::format("{}{}-bit {}integer", order, bits,
                         H5Tget_sign(type) == H5T_SGN_NONE ? "unsigned " : "");
    case H5T_FLOAT:
      return fmt::format("{}{}-bit float", order, bits);
    case H5T_STRING:
      return "string";
    case H5T_COMPOUND:
      return "compound";
    case H5T_ENUM:
      return "enum";
    default:
      return fmt::format("HDF5 type class {}", static_cast<int>(kind));
  }
}

Id make_string_type(std::size_t length) {
  Id type(H5Tcopy(H5T_C_S1));
  H5Tset_size(type.get(), std::max<std::size_t>(length, 1));
  H5Tset_strpad(type.get(), H5T_STR_NULLPAD);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  return type;
}

Id make_space(const Shape& shape) {
  if (shape.empty()) return Id(H5Screate(H5S_SCALAR));
  const std::vector<hsize_t> dims(shape.begin(), shape.end());
  return Id(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr));
}

Shape shape_of(hid_t space) {
  const int rank = H5Sget_simple_extent_ndims(space);
  std::vector<hsize_t> dims(static_cast<std::size_t>(std::max(rank, 0)));
  if (rank > 0) H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  return Shape(dims.begin(), dims.end());
}

std::string missing_prefix(hid_t file, const std::string& name) {
  for (std::size_t end = 0; end != std::string::npos;) {
    end = name.find('/', end == 0 && name.starts_with('/') ? 1 : end + (end != 0));
    const std::string prefix = name.substr(0, end);
    if (prefix.empty() || prefix == "/") continue;
    if (H5Lexists(file, prefix.c_str(), H5P_DEFAULT) <= 0) {
      H5Eclear2(H5E_DEFAULT);
      return prefix;
    }
  }
  return "";
}

bool is_hard_link(hid_t file, const std::string& name) {
  H5L_info_t link = {};
  const bool hard =
      H5Lget_info(file, name.c_str(), &link, H5P_DEFAULT) >= 0 && link.type == H5L_TYPE_HARD;
  H5Eclear2(H5E_DEFAULT);
  return hard;
}

void require_hard_links(hid_t file, const std::string& path, const std::string& name) {
  for (std::size_t end = 0; end != std::string::npos;) {
    end = name.find('/', end + 1);
    const std::string prefix = name.substr(0, end);
    if (prefix.empty() || prefix == "/") continue;
    const htri_t exists = H5Lexists(file, prefix.c_str(), H5P_DEFAULT);
    H5Eclear2(H5E_DEFAULT);
    if (exists <= 0) return;
    if (!is_hard_link(file, prefix))
      fail_damaged(
          "{}: '{}' is a soft or external link: the file must hold the object itself (h5repack)",
          path, prefix);
  }
}

Id open_dataset(hid_t file, const std::string& path, const std::string& name) {
  require_hard_links(file, path, name);
  const std::string missing = missing_prefix(file, name);
  if (missing == name) fail_damaged("{}: no dataset '{}'", path, name);
  if (!missing.empty()) fail_damaged("{}: no dataset '{}' ('{}' is missing)", path, name, missing);
  Id dataset(H5Dopen2(file, name.c_str(), H5P_DEFAULT));
  if (!dataset)
    fail_hdf5(path, fmt::format("cannot open dataset '{}'", name), ExitStatus::kDamaged);
  return dataset;
}

Id open_object(hid_t file, const std::string& path, const std::string& name) {
  require_hard_links(file, path, name);
  Id object(H5Oopen(file, name.c_str(), H5P_DEFAULT));
  if (!object) fail_hdf5(path, fmt::format("no object '{}'", name), ExitStatus::kDamaged);
  return object;
}

Id create_dataset(hid_t file, const std::string& path, const std::string& name, hid_t type,
                  hid_t space, Id properties) {
  Id links(H5Pcreate(H5P_LINK_CREATE));
  H5Pset_create_intermediate_group(links.get(), 1);
  H5Pset_char_encoding(links.get(), H5T_CSET_UTF8);
  H5Pset_obj_track_times(properties.get(), false);
  Id dataset(
      H5Dcreate2(file, name.c_str(), type, space, links.get(), properties.get(), H5P_DEFAULT));
  if (!dataset)
    fail_hdf5(path, fmt::format("cannot create dataset '{}'", name), ExitStatus::kFailed);
  return dataset;
}

void require_filters(hid_t dataset, const std::string& path, const std::string& name) {
  const Id properties(H5Dget_create_plist(dataset));
  for (int i = 0; i < H5Pget_nfilters(properties.get()); ++i) {
    std::array<char, 64> text = {};
    unsigned flags = 0;
    std::size_t values = 0;
    const auto filter = H5Pget_filter2(properties.get(), static_cast<unsigned>(i), &flags, &values,
                                       nullptr, text.size(), text.data(), nullptr);
    if (H5Zfilter_avail(filter) <= 0)
      fail_damaged(
          "{}: cannot read '{}': required filter '{}' is not registered (compression plugin not "
          "installed; "
          "install it, or rewrite the file with h5repack -f NONE)",
          path, name, text.data());
  }
}

}  // namespace longspan::io::hdf5
