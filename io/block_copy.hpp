/// The part of a stored block that a wanted block needs, as runs of consecutive bytes in both. Any
/// number of dims, any layout to any layout. Nothing here communicates.
#pragma once

#include <cstdint>
#include <optional>

#include "parallel/array.hpp"

namespace longspan::io {

/// The overlap of two blocks of the same tensor, with the dims that are whole in both merged into
/// their neighbours: two row blocks of equal width give a single run.
class BlockOverlap {
 public:
  /// Empty if they do not meet. Offsets and shapes in elements.
  static std::optional<BlockOverlap> of(const Shape& source_offset, const Shape& source_shape,
                                        const Shape& wanted_offset, const Shape& wanted_shape,
                                        std::int64_t element_bytes);

  std::int64_t bytes() const { return runs_ * run_bytes_; }
  std::int64_t runs() const { return runs_; }
  std::int64_t run_bytes() const { return run_bytes_; }
  /// Where run `i` starts, in bytes from the start of each block. Both grow with i.
  std::int64_t source_byte(std::int64_t run) const {
    return position(run, source_offset_, source_stride_);
  }
  std::int64_t wanted_byte(std::int64_t run) const {
    return position(run, wanted_offset_, wanted_stride_);
  }

 private:
  std::int64_t position(std::int64_t run, std::int64_t start, const Shape& stride) const;
  Shape count_;                          ///< runs along each of the outer dims
  Shape source_stride_, wanted_stride_;  ///< bytes between runs along them
  std::int64_t source_offset_ = 0, wanted_offset_ = 0, run_bytes_ = 0, runs_ = 1;
};

}  // namespace longspan::io
