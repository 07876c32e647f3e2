// Decides which kernel serves a call, and prepares what it reads.
#include "model/kernels/cuda/attention.hpp"

#include <cstdint>
#include <utility>

#include "model/kernels/cuda/attention_blocks.hpp"
#include "model/kernels/cuda/attention_prepare.hpp"
#include "model/kernels/cuda/cudnn_attention.hpp"
#include "parallel/error.hpp"

namespace longspan::model::cuda {
namespace {

AttentionSizes sizes_of(const AttentionShape& shape) {
  return {static_cast<int>(shape.batch), static_cast<int>(shape.heads),
          static_cast<int>(shape.kv_heads), static_cast<int>(shape.head_size), shape.scale};
}

/// The maximum of scores is taken before they are scaled there: the scale must not turn them round.
bool on_matrix_units(const AttentionShape& shape) {
  return shape.bf16_operands && bf16_serves(shape.head_size) && shape.scale > 0.0f;
}

template <class T>
Tensor<T> from_head(const Tensor<T>& tensor, std::int64_t head, std::int64_t head_size) {
  return {tensor.data + head * head_size, tensor.row, tensor.batch};
}
template <class T>
Statistic<T> from_head(const Statistic<T>& statistic, std::int64_t head, std::int64_t queries) {
  return {statistic.data ? statistic.data + head * queries : nullptr, statistic.batch};
}

std::int64_t copy_bytes(const AttentionShape& shape, std::int64_t tokens) {
  return shape.batch * tokens * shape.head_size * 2;
}

void forward_in_bf16(const AttentionShape& shape, const ForwardParams& all, std::int64_t workspace,
                     Device& device, Stream& stream) {
  const std::int64_t group = shape.heads / shape.kv_heads, size = shape.head_size;
  in_slices(shape.kv_heads, 2 * copy_bytes(shape, shape.keys), workspace,
            [&](std::int64_t first, std::int64_t count) {
              const auto copy = [&](const Tensor<const float>& x) {
                return Bf16Copy(from_head(x, first, size), shape.batch, shape.keys, count * size,
                                shape.key_positions, device, stream);
              };
              const Bf16Copy k = copy(all.k), v = copy(all.v);
              ForwardParams slice = all;
              slice.sizes.kv_heads = static_cast<int>(count);
              slice.sizes.heads = static_cast<int>(count * group);
              slice.k_bf16 = k, slice.v_bf16 = v;
              slice.q = from_head(all.q, first * group, size);
              slice.o = from_head(all.o, first * group, size);
              slice.lse = from_head(all.lse, first * group, shape.queries);
              slice.sum = from_head(all.sum, first * group, shape.queries);
              launch_bf16_forward(slice, stream);
            });
}

void backward_in_bf16(const AttentionShape& shape, const BackwardParams& all, MaskMemory& mask,
                      std::int64_t workspace, Device& device, Stream& stream) {
  const std::int64_t group = shape.heads / shape.kv_heads, size = shape.head_size;
  const DeviceMask for_keys = mask.in_tiles(kBf16KeyGradientTiles),
                   for_queries = mask.in_tiles(kBf16QueryGradientTiles);
  in_slices(shape.kv_heads,
            2 * (copy_bytes(shape, shape.keys) + group * copy_bytes(shape, shape.queries)),
            workspace, [&](std::int64_t first, std::int64_t count) {
              const auto copy_keys = [&](const Tensor<const float>& x) {
                return Bf16Copy(from_head(x, first, size), shape.batch, shape.keys, count * size,
                                shape.key_positions, device, stream);
              };
              const auto copy_queries = [&](const Tensor<const float>& x) {
                return Bf16Copy(from_head(x, first * group, size), shape.batch, shape.queries,
                                count * group * size, shape.query_positions, device, stream);
              };
              const Bf16Copy k = copy_keys(all.k), v = copy_keys(all.v), q = copy_queries(all.q),
                             dout = copy_queries(all.dout);
              BackwardParams slice = all;
              slice.sizes.kv_heads = static_cast<int>(count);
              slice.sizes.heads = static_cast<int>(count * group);
              slice.k_bf16 = k, slice.v_bf16 = v, slice.q_bf16 = q, slice.dout_bf16 = dout;
              slice.lse = from_head(all.lse, first * group, shape.queries);
              slice.delta = from_head(all.delta, first * group, shape.queries);
              slice.dq = from_head(all.dq, first * group, size);
              slice.dk = from_head(all.dk, first, size);
              slice.dv = from_head(all.dv, first, size);
              slice.mask = for_keys;
              launch_bf16_key_gradients(slice, stream);
              slice.mask = for_queries;
              launch_bf16_query_gradients(slice, stream);
            });
}

}  // namespace

void check_alignment(const char* name, const float* data, std::int64_t row, std::int64_t batch) {
  if (reinterpret_cast<std::uintptr_t>(data) % 16 != 0 || row % 4 != 0 || batch % 4 != 0)
    fail(
        "attention on CUDA: {} is not aligned to 16 bytes (address {:#x}, {} elements between "
        "tokens, {} between sequences): make them multiples of 4",
        name, reinterpret_cast<std::uintptr_t>(data), row, batch);
}

Attention::Attention(Device& device, AttentionOptions options)
    : device_(device), options_(options) {
  if (options.deterministic)
    reason_ = "run.deterministic=on";
  else
    dense_ = open_cudnn_attention(device, reason_);
}
Attention::Attention(Device& device, std::unique_ptr<DenseAttention> dense,
                     AttentionOptions options)
    : device_(device), options_(options), dense_(std::move(dense)) {}
Attention::~Attention() = default;

std::string Attention::description() const {
  return dense_ ? dense_->description() : "own kernels: " + reason_;
}

void Attention::forward(const AttentionForwardArgs& args, Stream& stream) {
  const AttentionShape& shape = args.shape;
  check_shape(shape);
  if (shape.batch * shape.queries == 0) return;
  if ((args.merge || args.more) && args.sum == nullptr)
    fail("attention: keys in several blocks (merge {}, more {}) need `sum`", args.merge, args.more);
  check_alignment("q", args.q, args.q_row, args.q_batch);
  check_alignment("k", args.k, args.kv_row, args.kv_batch);
  check_alignment("v", args.v, args.kv_row, args.kv_batch);
  check_alignment("o", args.o, args.o_row, args.o_batch);
  if (dense_ && forward_in_blocks(*dense_, args, options_.workspace_bytes, device_, stream)) return;
  const std::int64_t statistics = shape.heads * shape.queries;
  ForwardParams params;
  params.sizes = sizes_of(shape);
  params.q = {args.q, args.q_row, args.q_batch};
  params.k = {args.k, args.kv_row, args.kv_batch};
  params.v = {args.v, args.kv_row, args.kv_batch};
  params.o = {args.o, args.o_row, args.o_batch};
  params.lse = {args.lse, statistics};
  params.sum = {args.sum, statistics};
  params.merge = args.merge;
  params.more = args.more;
  MaskMemory mask(shape, device_, stream);
  if (on_matrix_units(shape)) {
    params.mask = mask.in_tiles(kBf16ForwardTiles);
    forward_in_bf16(shape, params, options_.workspace_bytes, device_, stream);
  } else {
    params.mask = mask.in_tiles(fp32_forward_tiles(params.sizes.head_size));
    launch_fp32_forward(params, stream);
  }
}

void Attention::delta(const AttentionDeltaArgs& args, Stream& stream) {
  attention_delta(args, stream);
}

void Attention::backward(const AttentionBackwardArgs& args, Stream& stream) {
  const AttentionShape& shape = args.shape;
  check_shape(shape);
  if (shape.batch * shape.queries * shape.keys == 0) return;
  check_alignment("q", args.q, args.q_row, args.q_batch);
  check_alignment("k", args.k, args.kv_row, args.kv_batch);
  check_alignment("v", args.v, args.kv_row, args.kv_batch);
  check_alignment("dout", args.dout, args.dout_row, args.dout_batch);
  check_alignment("dq", args.dq, args.dq_row, args.dq_batch);
  check_alignment("dk", args.dk, args.dkv_row, args.dkv_batch);
  check_alignment("dv", args.dv, args.dkv_row, args.dkv_batch);
  if (dense_ && backward_in_blocks(*dense_, args, options_.workspace_bytes, device_, stream))
    return;
  const std::int64_t statistics = shape.heads * shape.queries;
  BackwardParams params;
  params.sizes = sizes_of(shape);
  params.q = {args.q, args.q_row, args.q_batch};
  params.k = {args.k, args.kv_row, args.kv_batch};
  params.v = {args.v, args.kv_row, args.kv_batch};
  params.dout = {args.dout, args.dout_row, args.dout_batch};
  params.lse = {args.lse, statistics};
  params.delta = {args.delta, statistics};
  params.dq = {args.dq, args.dq_row, args.dq_batch};
  params.dk = {args.dk, args.dkv_row, args.dkv_batch};
  params.dv = {args.dv, args.dkv_row, args.dkv_batch};
  MaskMemory mask(shape, device_, stream);
  if (on_matrix_units(shape)) {
    backward_in_bf16(shape, params, mask, options_.workspace_bytes, device_, stream);
  } else {
    params.mask = mask.in_tiles(fp32_backward_tiles(params.sizes.head_size));
    launch_fp32_key_gradients(params, stream);
    launch_fp32_query_gradients(params, stream);
  }
}

}  // namespace longspan::model::cuda
