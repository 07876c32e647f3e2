/// Arrays as the layers, collectives and files see them: typed views of memory somebody else owns,
/// and the description of a global tensor of which this rank holds a block. Read next: device.hpp.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace longspan {

class Device;

enum class DType { kF32, kBF16, kU8, kU16, kU32, kI32, kI64, kU64, kF64 };

std::size_t size_of(DType dtype);
std::string_view name_of(DType dtype);  ///< "f32", "bf16", ...

/// Extents of a tensor, slowest dim first. An empty shape is a scalar.
using Shape = std::vector<std::int64_t>;

std::int64_t element_count(const Shape& shape);
/// Bytes of so many elements, for shapes that a file claims: none if an extent is negative or the
/// product does not fit into 63 bits.
std::optional<std::int64_t> checked_bytes(const Shape& shape, std::int64_t bytes_per_element);
std::string to_string(const Shape& shape);  ///< "[50257, 768]"

/// Contiguous elements owned by somebody else; at most four dims, row-major. A layer's argument
/// name ends in its dims (x_BSD), so the view carries only rows and columns: `cols` is the fastest
/// dim, `rows` all others.
template <class T>
class View {
 public:
  View() = default;
  View(T* data, std::int64_t count) : data_(data), rows_(1), cols_(count) {}
  View(T* data, std::int64_t rows, std::int64_t cols) : data_(data), rows_(rows), cols_(cols) {}
  /// View<T> -> View<const T>.
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T>>>
  View(const View<U>& other) : data_(other.data()), rows_(other.rows()), cols_(other.cols()) {}

  T* data() const { return data_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t size() const { return rows_ * cols_; }
  bool empty() const { return size() == 0; }
  T& operator[](std::int64_t i) const {
    assert(i >= 0 && i < size());
    return data_[i];
  }
  T* begin() const { return data_; }
  T* end() const { return data_ + size(); }
  T* row(std::int64_t r) const { return data_ + r * cols_; }
  /// Rows [first, first + count).
  View slice_rows(std::int64_t first, std::int64_t count) const {
    assert(first >= 0 && first + count <= rows_);
    return View(data_ + first * cols_, count, cols_);
  }
  /// Elements [first, first + count), as one row.
  View slice(std::int64_t first, std::int64_t count) const {
    assert(first >= 0 && first + count <= size());
    return View(data_ + first, count);
  }

 private:
  T* data_ = nullptr;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
};

/// A global tensor and the block of it at `data`: elements [offset, offset + shape) in every dim,
/// contiguous and row-major. The model hands these out, the checkpoint writes and fills them;
/// neither knows the other.
struct ShardedArray {
  std::string name;  ///< path in the file, e.g. "model/blocks.0.attention.query.weight"
  DType dtype = DType::kF32;
  Shape global_shape;
  Shape offset;
  Shape shape;
  void* data = nullptr;
  Device* device = nullptr;  ///< whose memory `data` is; null: the host's

  std::int64_t bytes() const {
    return element_count(shape) * static_cast<std::int64_t>(size_of(dtype));
  }
};

/// The rows (dim 0) of `array` that replica `index` of `count` holds when equal replicas share the
/// writing: consecutive, balanced, possibly none. `count` replicas together cover the block exactly
/// once.
ShardedArray rows_of_replica(const ShardedArray& array, int index, int count);

/// First element of part `index` when `total` elements are split into `count` consecutive, balanced
/// parts.
inline std::int64_t part_begin(std::int64_t total, std::int64_t index, std::int64_t count) {
  return total / count * index + (total % count) * index / count;
}

/// Part `index` of `count` of all elements, split in that way.
template <class T>
View<T> part_of(View<T> all, std::int64_t index, std::int64_t count) {
  const std::int64_t begin = part_begin(all.size(), index, count);
  return all.slice(begin, part_begin(all.size(), index + 1, count) - begin);
}

}  // namespace longspan
