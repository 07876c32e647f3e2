#include <cstring>

#include "io/hdf5.hpp"
#include "io/hdf5_internal.hpp"
#include "parallel/error.hpp"

namespace longspan::io::hdf5 {

namespace {

/// Text of a fixed or variable length string; `read` fetches into memory of the given type.
template <class Read>
std::string read_string(hid_t type, Read&& read) {
  constexpr std::size_t kLongest = 1 << 20;  // a file may claim any length
  if (H5Tis_variable_str(type) > 0) {
    char* text = nullptr;
    if (read(static_cast<void*>(&text)) < 0 || text == nullptr) return "";
    std::string copy(text, ::strnlen(text, kLongest));
    H5free_memory(text);
    return copy;
  }
  if (H5Tget_size(type) > kLongest) return "";
  std::string text(H5Tget_size(type), '\0');
  if (read(static_cast<void*>(text.data())) < 0) return "";
  return text.substr(0, text.find('\0'));
}

void write_attribute(hid_t file, const std::string& path, const std::string& object,
                     const std::string& name, hid_t type, hid_t space, const void* value) {
  const Id owner = open_object(file, path, object);
  const Id attribute(H5Acreate2(owner.get(), name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT));
  if (!attribute || H5Awrite(attribute.get(), type, value) < 0)
    fail_hdf5(path, fmt::format("cannot write attribute '{}' of '{}'", name, object),
              ExitStatus::kFailed);
}

Id open_attribute(hid_t file, const std::string& path, const std::string& object,
                  const std::string& name, H5T_class_t kind) {
  const Id owner = open_object(file, path, object);
  Id attribute(H5Aopen(owner.get(), name.c_str(), H5P_DEFAULT));
  H5Eclear2(H5E_DEFAULT);
  if (!attribute) fail_damaged("{}: '{}' has no attribute '{}'", path, object, name);
  const Id type(H5Aget_type(attribute.get()));
  if (H5Tget_class(type.get()) != kind)
    fail_damaged("{}: attribute '{}' of '{}' holds {}", path, name, object,
                 describe_type(type.get()));
  return attribute;
}

/// How many values an attribute has; -1 for more than any attribute of ours.
std::int64_t attribute_values(hid_t attribute) {
  const Shape shape = shape_of(Id(H5Aget_space(attribute)).get());
  const auto count = checked_bytes(shape, 1);
  return count && *count <= H5S_MAX_RANK ? *count : -1;
}

template <class T>
T read_scalar_attribute(hid_t file, const std::string& path, const std::string& object,
                        const std::string& name, DType dtype) {
  const Id attribute = open_attribute(file, path, object, name, H5T_INTEGER);
  T value = 0;
  if (attribute_values(attribute.get()) != 1 ||
      H5Aread(attribute.get(), make_type(dtype).get(), &value) < 0)
    fail_hdf5(path, fmt::format("cannot read attribute '{}' of '{}'", name, object),
              ExitStatus::kDamaged);
  return value;
}
}  // namespace

bool File::has_attribute(const std::string& object, const std::string& name) const {
  const Lock lock;
  const Id owner = open_object(id_, path_, object);
  return H5Aexists(owner.get(), name.c_str()) > 0;
}

void File::set_attribute(const std::string& object, const std::string& name,
                         const std::string& value) {
  const Lock lock;
  const std::string padded = value.empty() ? std::string(1, '\0') : value;
  write_attribute(id_, path_, object, name, make_string_type(padded.size()).get(),
                  make_space({}).get(), padded.data());
}
void File::set_attribute(const std::string& object, const std::string& name, const char* value) {
  set_attribute(object, name, std::string(value));
}
void File::set_attribute(const std::string& object, const std::string& name, std::uint64_t value) {
  const Lock lock;
  write_attribute(id_, path_, object, name, make_type(DType::kU64).get(), make_space({}).get(),
                  &value);
}
void File::set_attribute(const std::string& object, const std::string& name, std::int64_t value) {
  const Lock lock;
  write_attribute(id_, path_, object, name, make_type(DType::kI64).get(), make_space({}).get(),
                  &value);
}
void File::set_attribute(const std::string& object, const std::string& name, const Shape& value) {
  const Lock lock;
  write_attribute(id_, path_, object, name, make_type(DType::kU64).get(),
                  make_space({static_cast<std::int64_t>(value.size())}).get(), value.data());
}

std::string File::text_attribute(const std::string& object, const std::string& name) const {
  const Lock lock;
  const Id attribute = open_attribute(id_, path_, object, name, H5T_STRING);
  const Id type(H5Aget_type(attribute.get()));
  if (attribute_values(attribute.get()) != 1)
    fail_damaged("{}: attribute '{}' of '{}' is not one text", path_, name, object);
  return read_string(type.get(),
                     [&](void* out) { return H5Aread(attribute.get(), type.get(), out); });
}
std::uint64_t File::u64_attribute(const std::string& object, const std::string& name) const {
  const Lock lock;
  return read_scalar_attribute<std::uint64_t>(id_, path_, object, name, DType::kU64);
}
std::int64_t File::i64_attribute(const std::string& object, const std::string& name) const {
  const Lock lock;
  return read_scalar_attribute<std::int64_t>(id_, path_, object, name, DType::kI64);
}
Shape File::shape_attribute(const std::string& object, const std::string& name) const {
  const Lock lock;
  const Id attribute = open_attribute(id_, path_, object, name, H5T_INTEGER);
  const std::int64_t count = attribute_values(attribute.get());
  if (count < 0)
    fail_damaged("{}: attribute '{}' of '{}' has too many values", path_, name, object);
  Shape value(static_cast<std::size_t>(count));
  if (!value.empty() && H5Aread(attribute.get(), make_type(DType::kI64).get(), value.data()) < 0)
    fail_hdf5(path_, fmt::format("cannot read attribute '{}' of '{}'", name, object),
              ExitStatus::kDamaged);
  return value;
}

}  // namespace longspan::io::hdf5
