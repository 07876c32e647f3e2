#include "parallel/array.hpp"

namespace longspan {

std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kU8:
      return 1;
    case DType::kBF16:
    case DType::kU16:
      return 2;
    case DType::kF32:
    case DType::kU32:
    case DType::kI32:
      return 4;
    case DType::kI64:
    case DType::kU64:
    case DType::kF64:
      return 8;
  }
  return 0;
}

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kU8:
      return "u8";
    case DType::kU16:
      return "u16";
    case DType::kU32:
      return "u32";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kU64:
      return "u64";
    case DType::kF64:
      return "f64";
  }
  return "unknown";
}

std::int64_t element_count(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return count;
}

std::optional<std::int64_t> checked_bytes(const Shape& shape, std::int64_t bytes_per_element) {
  std::int64_t bytes = bytes_per_element;
  bool empty = false;
  for (const std::int64_t extent : shape) {
    if (extent < 0) return std::nullopt;
    empty = empty || extent == 0;
    if (extent > 0 && __builtin_mul_overflow(bytes, extent, &bytes)) return std::nullopt;
  }
  return empty ? 0 : bytes;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(extent);
  }
  return text + "]";
}

ShardedArray rows_of_replica(const ShardedArray& array, int index, int count) {
  ShardedArray part = array;
  if (array.shape.empty()) {  // a scalar has no rows to share: the first replica writes it
    if (index == 0) return part;
    part.global_shape = part.global_shape.empty() ? Shape{1} : part.global_shape;
    part.offset = Shape{0};
    part.shape = Shape{0};
    return part;
  }
  const std::int64_t first = part_begin(array.shape[0], index, count);
  const std::int64_t rows = part_begin(array.shape[0], index + 1, count) - first;
  const std::int64_t row_bytes = array.shape[0] == 0 ? 0 : array.bytes() / array.shape[0];
  part.offset[0] += first;
  part.shape[0] = rows;
  part.data = static_cast<std::byte*>(array.data) + first * row_bytes;
  return part;
}

}  // namespace longspan
