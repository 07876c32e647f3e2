#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "io/hdf5.hpp"
#include "io/hdf5_internal.hpp"
#include "parallel/error.hpp"

namespace longspan::io::hdf5 {

std::uint64_t File::create_contiguous(const std::string& name, DType dtype, const Shape& shape) {
  const Lock lock;
  Id properties(H5Pcreate(H5P_DATASET_CREATE));
  H5Pset_layout(properties.get(), H5D_CONTIGUOUS);
  H5Pset_alloc_time(properties.get(), H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(properties.get(), H5D_FILL_TIME_NEVER);
  const Id dataset = create_dataset(id_, path_, name, make_type(dtype).get(),
                                    make_space(shape).get(), std::move(properties));
  if (element_count(shape) == 0) return 0;
  const haddr_t offset = H5Dget_offset(dataset.get());
  if (offset == HADDR_UNDEF)
    fail_hdf5(path_, fmt::format("dataset '{}' has no place in the file", name),
              ExitStatus::kFailed);
  return offset;
}

void File::create_virtual(const std::string& name, DType dtype, const Shape& shape,
                          std::span<const VirtualBlock> blocks) {
  if (element_count(shape) == 0) {
    create_contiguous(name, dtype, shape);
    return;
  }
  const Lock lock;
  Id properties(H5Pcreate(H5P_DATASET_CREATE));
  const DType shown = dtype == DType::kBF16 ? DType::kF32 : dtype;
  // The library turns nearly every failure to open a source into fill values: NaN makes them
  // visible where it can.
  const double nan = std::numeric_limits<double>::quiet_NaN();
  if (shown == DType::kF32 || shown == DType::kF64)
    H5Pset_fill_value(properties.get(), H5T_NATIVE_DOUBLE, &nan);
  const Id space = make_space(shape);
  for (const VirtualBlock& block : blocks) {
    if (element_count(block.shape) == 0) continue;
    const std::vector<hsize_t> start(block.offset.begin(), block.offset.end());
    const std::vector<hsize_t> count(block.shape.begin(), block.shape.end());
    const Id source = make_space(block.shape);
    if (H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(),
                            nullptr) < 0 ||
        H5Pset_virtual(properties.get(), space.get(), block.file.c_str(), block.source.c_str(),
                       source.get()) < 0)
      fail_hdf5(path_,
                fmt::format("cannot map '{}' of {} into '{}'", block.source, block.file, name),
                ExitStatus::kFailed);
  }
  H5Sselect_all(space.get());
  create_dataset(id_, path_, name, make_type(shown).get(), space.get(), std::move(properties));
}

void File::write(const std::string& name, DType dtype, const Shape& shape, const void* data) {
  const Lock lock;
  const Id type = make_type(dtype);
  const Id dataset = create_dataset(id_, path_, name, type.get(), make_space(shape).get(),
                                    Id(H5Pcreate(H5P_DATASET_CREATE)));
  if (element_count(shape) == 0) return;
  if (H5Dwrite(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0)
    fail_hdf5(path_, fmt::format("cannot write '{}'", name), ExitStatus::kFailed);
}

void File::write(const std::string& name, std::span<const std::uint64_t> values) {
  write(name, DType::kU64, {static_cast<std::int64_t>(values.size())}, values.data());
}
void File::write(const std::string& name, std::span<const std::int64_t> values) {
  write(name, DType::kI64, {static_cast<std::int64_t>(values.size())}, values.data());
}
void File::write(const std::string& name, std::span<const float> values) {
  write(name, DType::kF32, {static_cast<std::int64_t>(values.size())}, values.data());
}
void File::write_text(const std::string& name, const std::string& text) {
  write(name, DType::kU8, {static_cast<std::int64_t>(text.size())}, text.data());
}

void File::write_strings(const std::string& name, const std::vector<std::string>& values) {
  std::size_t length = 1;
  for (const auto& value : values) length = std::max(length, value.size());
  std::string packed(values.size() * length, '\0');
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i].copy(packed.data() + i * length, length);
  const Lock lock;
  const Id type = make_string_type(length);
  const Id dataset = create_dataset(id_, path_, name, type.get(),
                                    make_space({static_cast<std::int64_t>(values.size())}).get(),
                                    Id(H5Pcreate(H5P_DATASET_CREATE)));
  if (!values.empty() &&
      H5Dwrite(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, packed.data()) < 0)
    fail_hdf5(path_, fmt::format("cannot write '{}'", name), ExitStatus::kFailed);
}

void File::read(const std::string& name, DType memory, void* data) const {
  const Shape shape = info(name).shape;
  if (shape.empty()) {
    read_rows(name, 0, 1, memory, data);
  } else {
    read_rows(name, 0, shape[0], memory, data);
  }
}

void File::read_rows(const std::string& name, std::int64_t first, std::int64_t count, DType memory,
                     void* data) const {
  const Lock lock;
  const Id dataset = open_dataset(id_, path_, name);
  const Id file_type(H5Dget_type(dataset.get()));
  const auto kind = H5Tget_class(file_type.get());
  const bool wants_bf16 = memory == DType::kBF16;
  if ((kind != H5T_FLOAT && kind != H5T_INTEGER && kind != H5T_ENUM) ||
      (wants_bf16 && dtype_of(file_type.get()) != memory))
    fail_damaged("{}: dataset '{}' holds {}, not {}", path_, name, describe_type(file_type.get()),
                 name_of(memory));
  require_filters(dataset.get(), path_, name);
  const Id space(H5Dget_space(dataset.get()));
  Shape shape = shape_of(space.get());
  Id memory_space(H5Screate(H5S_SCALAR));
  if (!shape.empty()) {
    if (first < 0 || count < 0 || first + count > shape[0])
      fail_damaged("{}: dataset '{}' of shape {} has no rows [{}, {})", path_, name,
                   to_string(shape), first, first + count);
    std::vector<hsize_t> start(shape.size(), 0);
    start[0] = static_cast<hsize_t>(first);
    shape[0] = count;
    if (element_count(shape) == 0) return;
    const std::vector<hsize_t> block(shape.begin(), shape.end());
    H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, block.data(), nullptr);
    memory_space = make_space(shape);
  }
  if (H5Dread(dataset.get(), make_type(memory).get(), memory_space.get(), space.get(), H5P_DEFAULT,
              data) < 0)
    fail_hdf5(path_, fmt::format("cannot read '{}'", name), ExitStatus::kDamaged);
}

namespace {
constexpr std::int64_t kMostBytes = std::int64_t{1} << 34;

template <class T>
std::vector<T> read_vector(const File& file, const std::string& name, DType dtype) {
  const Shape shape = file.info(name).shape;
  // A damaged file may claim any extent: do not ask for memory that cannot be there.
  if (element_count(shape) > kMostBytes / static_cast<std::int64_t>(sizeof(T)))
    fail_damaged("{}: dataset '{}' claims the shape {}: too much to read at once", file.path(),
                 name, to_string(shape));
  std::vector<T> values(static_cast<std::size_t>(element_count(shape)));
  if (!values.empty()) file.read(name, dtype, values.data());
  return values;
}
}  // namespace

std::vector<std::uint64_t> File::read_u64(const std::string& name) const {
  return read_vector<std::uint64_t>(*this, name, DType::kU64);
}
std::vector<std::int64_t> File::read_i64(const std::string& name) const {
  return read_vector<std::int64_t>(*this, name, DType::kI64);
}
std::vector<float> File::read_f32(const std::string& name) const {
  return read_vector<float>(*this, name, DType::kF32);
}

std::string File::read_text(const std::string& name) const {
  const auto bytes = read_vector<char>(*this, name, DType::kU8);
  return std::string(bytes.begin(), bytes.end());
}

namespace {
constexpr std::int64_t kMostStringBytes = std::int64_t{1} << 30;
}

std::vector<std::string> File::read_strings(const std::string& name) const {
  const Lock lock;
  const Id dataset = open_dataset(id_, path_, name);
  const Id type(H5Dget_type(dataset.get()));
  const Id space(H5Dget_space(dataset.get()));
  if (H5Tget_class(type.get()) != H5T_STRING)
    fail_damaged("{}: dataset '{}' holds {}, not strings", path_, name, describe_type(type.get()));
  // Each could claim to be as long as the file, and all of them be the same bytes of it.
  if (H5Tis_variable_str(type.get()) > 0)
    fail_damaged("{}: dataset '{}' holds strings of variable length: expected a fixed one", path_,
                 name);
  const std::size_t length = H5Tget_size(type.get());
  const auto bytes = checked_bytes(shape_of(space.get()), static_cast<std::int64_t>(length));
  if (!bytes || *bytes > kMostStringBytes)
    fail_damaged("{}: dataset '{}' claims strings of shape {} and length {}: too many", path_, name,
                 to_string(shape_of(space.get())), length);
  const auto count = static_cast<std::size_t>(*bytes) / std::max<std::size_t>(length, 1);
  std::vector<std::string> values(count);
  if (count == 0) return values;
  std::vector<char> packed(count * length);
  if (H5Dread(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, packed.data()) < 0)
    fail_hdf5(path_, fmt::format("cannot read '{}'", name), ExitStatus::kDamaged);
  for (std::size_t i = 0; i < count; ++i) {
    const char* text = packed.data() + i * length;
    values[i].assign(text, ::strnlen(text, length));
  }
  return values;
}

}  // namespace longspan::io::hdf5
