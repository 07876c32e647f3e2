#include "io/block_copy.hpp"

#include <algorithm>

namespace longspan::io {

std::optional<BlockOverlap> BlockOverlap::of(const Shape& source_offset, const Shape& source_shape,
                                             const Shape& wanted_offset, const Shape& wanted_shape,
                                             std::int64_t element_bytes) {
  const std::size_t dims = source_shape.size();
  Shape begin(dims), extent(dims);
  for (std::size_t d = 0; d < dims; ++d) {
    begin[d] = std::max(source_offset[d], wanted_offset[d]);
    extent[d] =
        std::min(source_offset[d] + source_shape[d], wanted_offset[d] + wanted_shape[d]) - begin[d];
    if (extent[d] <= 0) return std::nullopt;
  }
  BlockOverlap overlap;
  std::int64_t source_stride = element_bytes, wanted_stride = element_bytes;
  overlap.run_bytes_ = element_bytes;
  bool merging = true;  // while all dims inside of this one are whole in both blocks, runs grow
  for (std::size_t d = dims; d-- > 0;) {
    overlap.source_offset_ += (begin[d] - source_offset[d]) * source_stride;
    overlap.wanted_offset_ += (begin[d] - wanted_offset[d]) * wanted_stride;
    if (merging) {
      overlap.run_bytes_ *= extent[d];
      merging = extent[d] == source_shape[d] && extent[d] == wanted_shape[d];
    } else {
      overlap.count_.insert(overlap.count_.begin(), extent[d]);
      overlap.source_stride_.insert(overlap.source_stride_.begin(), source_stride);
      overlap.wanted_stride_.insert(overlap.wanted_stride_.begin(), wanted_stride);
      overlap.runs_ *= extent[d];
    }
    source_stride *= source_shape[d];
    wanted_stride *= wanted_shape[d];
  }
  return overlap;
}

std::int64_t BlockOverlap::position(std::int64_t run, std::int64_t start,
                                    const Shape& stride) const {
  for (std::size_t d = count_.size(); d-- > 0; run /= count_[d])
    start += run % count_[d] * stride[d];
  return start;
}

}  // namespace longspan::io
