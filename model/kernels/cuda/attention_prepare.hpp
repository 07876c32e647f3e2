/// What comes before an attention kernel: the tiles of its mask and bf16 copies of its inputs, both
/// in the device's memory until the end of the call (stream order makes that enough). Read next:
/// attention.cu, which uses them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <list>

#include "model/kernels/attention.hpp"
#include "model/kernels/cuda/attention_params.cuh"
#include "parallel/device.hpp"

namespace longspan::model::cuda {

/// Owns the device side of a mask.
class MaskMemory {
 public:
  /// shape.queries > 0; its arrays must outlive this.
  MaskMemory(const AttentionShape& shape, Device& device, Stream& stream);
  /// The mask summarised in tiles of these sizes; valid while this lives.
  DeviceMask in_tiles(TileSizes tiles);

 private:
  AttentionShape shape_;
  Device& device_;
  Stream& stream_;
  Buffer<std::int32_t> intervals_;         // low, high
  std::list<Buffer<std::int32_t>> tiles_;  // one per in_tiles()
};

/// A contiguous copy [batch, tokens, width] of fp32 rows, rounded to bf16. width: a multiple of 8.
/// Tokens with a negative position become zeros, whatever stands there.
class Bf16Copy {
 public:
  Bf16Copy(Tensor<const float> from, std::int64_t batch, std::int64_t tokens, std::int64_t width,
           const std::int32_t* positions, Device& device, Stream& stream);
  operator Tensor<const std::uint16_t>() const { return {memory_.data(), row_, batch_}; }

 private:
  Buffer<std::uint16_t> memory_;
  std::int64_t row_, batch_;
};

void attention_delta(const AttentionDeltaArgs& args, Stream& stream);

/// Calls f(first, count) for slices of the kv heads whose copies, of bytes_per_kv_head, fit into
/// `limit`; at least one at a time.
template <class F>
void in_slices(std::int64_t kv_heads, std::int64_t bytes_per_kv_head, std::int64_t limit, F f) {
  const std::int64_t each = std::clamp<std::int64_t>(
      limit / std::max<std::int64_t>(1, bytes_per_kv_head), 1, std::max<std::int64_t>(1, kv_heads));
  for (std::int64_t first = 0; first < kv_heads; first += each)
    f(first, std::min(each, kv_heads - first));
}

/// Rows are read and written 16 bytes at a time. Throws Error, naming the tensor, where that cannot
/// be.
void check_alignment(const char* name, const float* data, std::int64_t row, std::int64_t batch);

}  // namespace longspan::model::cuda
