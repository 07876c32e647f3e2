#include "model/kernels/cuda/attention_blocks.hpp"

#include <algorithm>
#include <limits>

#include "model/kernels/cuda/attention_prepare.hpp"
#include "model/kernels/cuda/mma.cuh"

namespace longspan::model::cuda {
namespace {

using longspan::cuda::launch;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

unsigned blocks_of(std::int64_t count, std::int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

/// Row (sequence, token, head) of a tensor of `tokens` x `heads`, one warp each.
struct Row {
  std::int64_t batch, token, head;
};
__device__ inline Row row_of(std::int64_t index, std::int64_t tokens, std::int64_t heads) {
  return {index / heads / tokens, index / heads % tokens, index % heads};
}

/// The state of the online softmax (see AttentionForwardArgs) of a run of queries, which starts at
/// `o`, `lse` and `sum`, takes in a finished block: m = lse log2(e), l = 1, o.
struct CombineParams {
  std::int64_t batch, queries, heads, head_size;
  HeadTensor<float> o;
  float *lse, *sum;
  std::int64_t statistic_batch, statistic_head;  ///< of lse and sum: between sequences, heads
  const float *block_o, *block_lse;              ///< packed; null: nothing to take in
  bool start, finish;
};

__global__ void combine(CombineParams p) {
  const int lane = threadIdx.x % 32;
  const std::int64_t index = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (index >= p.batch * p.queries * p.heads) return;
  const Row row = row_of(index, p.queries, p.heads);
  const std::int64_t at = row.batch * p.statistic_batch + row.head * p.statistic_head + row.token;
  float* const o = p.o.data + row.batch * p.o.batch + row.token * p.o.row + row.head * p.o.head;
  float maximum = -INFINITY, sum = 0.0f, block_maximum = -INFINITY, factor = 0.0f,
        block_factor = 0.0f;
  // Not by the maximum: a query with a NaN has none, and its NaN must stay.
  const bool old = !p.start && p.sum[at] != 0.0f;
  if (old) maximum = p.lse[at], sum = p.sum[at];
  if (p.block_o != nullptr)
    block_maximum = p.block_lse[(row.batch * p.heads + row.head) * p.queries + row.token] * kLog2E;
  const float raised = fmaxf(maximum, block_maximum);
  const float shift = raised == -INFINITY ? 0.0f : raised;
  if (old) factor = exp2f(maximum - shift);
  if (p.block_o != nullptr) block_factor = exp2f(block_maximum - shift);
  sum = sum * factor + block_factor;
  const bool empty = sum == 0.0f;
  const float scale = !p.finish ? 1.0f : empty ? 0.0f : 1.0f / sum;
  __syncwarp();  // all have read
  if (lane == 0) {
    if (!p.finish) p.sum[at] = sum;
    p.lse[at] = !p.finish ? raised : empty ? -INFINITY : (raised + log2f(sum)) * kLn2;
  }
  for (std::int64_t d = lane; d < p.head_size; d += 32) {
    float value = 0.0f;
    if (old) value = factor * o[d];
    if (p.block_o != nullptr && block_factor != 0.0f)
      value += block_factor * p.block_o[index * p.head_size + d];
    o[d] = scale * value;
  }
}

/// to[batch, tokens, heads, head_size] += from, which is packed.
__global__ void add_packed(HeadTensor<float> to, const float* from, std::int64_t batch,
                           std::int64_t tokens, std::int64_t heads, std::int64_t head_size) {
  const std::int64_t i = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * 4;
  if (i >= batch * tokens * heads * head_size) return;
  const Row row = row_of(i / head_size, tokens, heads);
  float4* const at = reinterpret_cast<float4*>(to.data + row.batch * to.batch + row.token * to.row +
                                               row.head * to.head + i % head_size);
  const float4 x = *reinterpret_cast<const float4*>(from + i);
  float4 y = *at;
  y.x += x.x, y.y += x.y, y.z += x.z, y.w += x.w;
  *at = y;
}

/// to[batch, heads, tokens] packed = part of a statistic, of every `step`-th head.
__global__ void pack_statistic(const float* from, std::int64_t from_batch, std::int64_t from_head,
                               std::int64_t batch, std::int64_t heads, std::int64_t tokens,
                               float* to) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= batch * heads * tokens) return;
  to[i] = from[i / tokens / heads * from_batch + i / tokens % heads * from_head + i % tokens];
}

/// to[batch, tokens, heads, head_size] = dout times the number that makes its product with dout
/// delta, both in bf16. It stands in for o, which a call does not have: dout o = delta is all that
/// a backward pass asks of o. The rounding of many like numbers averages out, more than o's does.
__global__ void stand_in_for_o(HeadTensor<const std::uint16_t> dout, const float* delta,
                               std::int64_t delta_batch, std::int64_t batch, std::int64_t tokens,
                               std::int64_t heads, std::int64_t head_size, std::uint16_t* to) {
  const int lane = threadIdx.x % 32;
  const std::int64_t index = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (index >= batch * tokens * heads) return;
  const Row row = row_of(index, tokens, heads);
  const std::uint16_t* const from =
      dout.data + row.batch * dout.batch + row.token * dout.row + row.head * dout.head;
  float squares = 0.0f;
  for (std::int64_t d = lane; d < head_size; d += 32) {
    const float x = __uint_as_float(static_cast<unsigned>(from[d]) << 16);
    squares += x * x;
  }
  for (int distance = 16; distance > 0; distance /= 2)
    squares += __shfl_xor_sync(0xffffffffu, squares, distance);
  const float factor =
      squares > 0.0f ? delta[row.batch * delta_batch + row.head * tokens + row.token] / squares
                     : 0.0f;
  for (std::int64_t d = lane; d < head_size; d += 32) {
    const float x = __uint_as_float(static_cast<unsigned>(from[d]) << 16);
    to[index * head_size + d] = static_cast<std::uint16_t>(pack_bf16(factor * x, 0.0f));
  }
}

/// Tokens from `token` and heads from `head` on, every `step`-th.
template <class T>
HeadTensor<T> part_of(T* data, std::int64_t batch, std::int64_t row, std::int64_t head_size,
                      std::int64_t token, std::int64_t head = 0, std::int64_t step = 1) {
  return {data ? data + token * row + head * head_size : nullptr, batch, row, step * head_size};
}
HeadTensor<const std::uint16_t> part_of(const Tensor<const std::uint16_t>& x,
                                        std::int64_t head_size, std::int64_t token,
                                        std::int64_t head = 0, std::int64_t step = 1) {
  return part_of(x.data, x.batch, x.row, head_size, token, head, step);
}

DenseShape dense_shape(const AttentionShape& shape, const DenseBlock& block, std::int64_t heads,
                       std::int64_t kv_heads) {
  return {shape.batch,     block.queries, block.keys,   heads,      kv_heads,
          shape.head_size, block.causal,  block.window, shape.scale};
}

DenseBackward backward_call(const AttentionShape& shape, const DenseBlock& block,
                            std::int64_t kv_heads, std::int64_t member,
                            const Tensor<const std::uint16_t>& q,
                            const Tensor<const std::uint16_t>& k,
                            const Tensor<const std::uint16_t>& v,
                            const Tensor<const std::uint16_t>& dout,
                            const Tensor<const std::uint16_t>& o) {
  const std::int64_t group = shape.heads / shape.kv_heads, size = shape.head_size;
  DenseBackward call;
  call.shape = dense_shape(shape, block, kv_heads, kv_heads);
  call.q = part_of(q, size, block.first_query, member, group);
  call.dout = part_of(dout, size, block.first_query, member, group);
  call.o = part_of(o, size, block.first_query, member, group);
  call.k = part_of(k, size, block.first_key);
  call.v = part_of(v, size, block.first_key);
  return call;
}

/// The layout of a packed bf16 copy, for asking what is served before there is one.
Tensor<const std::uint16_t> packed_copy(std::int64_t tokens, std::int64_t width) {
  return {nullptr, width, tokens * width};
}

}  // namespace

std::optional<std::vector<DenseBlock>> dense_blocks(const AttentionShape& shape) {
  if (shape.query_documents != nullptr) return std::nullopt;
  const auto adds_up = [](const PositionRuns& runs, std::int64_t tokens) {
    for (int i = 0; i < runs.count; ++i) tokens -= runs.run[i].tokens;
    return runs.count > 0 && tokens == 0;
  };
  if (!adds_up(shape.query_runs, shape.queries) || !adds_up(shape.key_runs, shape.keys))
    return std::nullopt;
  std::vector<DenseBlock> blocks;
  std::int64_t first_query = 0;
  for (int i = 0; i < shape.query_runs.count; ++i) {
    const PositionRuns::Run& queries = shape.query_runs.run[i];
    std::int64_t first_key = 0;
    for (int j = 0; j < shape.key_runs.count; ++j) {
      const PositionRuns::Run& keys = shape.key_runs.run[j];
      // How far before (negative: behind) a query its nearest and its farthest key of the block
      // are.
      const std::int64_t nearest = queries.first_position - (keys.first_position + keys.tokens - 1),
                         farthest =
                             queries.first_position + queries.tokens - 1 - keys.first_position;
      const std::int64_t window =
          shape.mask.window > 0 ? shape.mask.window : std::numeric_limits<std::int64_t>::max();
      const bool visible = farthest >= (shape.mask.causal ? 0 : 1 - window) && nearest < window;
      const bool causal = shape.mask.causal && nearest < 0;
      const bool within = farthest < window && (shape.mask.causal || nearest > -window);
      const bool square =
          keys.first_position == queries.first_position && keys.tokens == queries.tokens;
      if (visible && queries.tokens > 0 && keys.tokens > 0) {
        if (causal ? !square : !within) return std::nullopt;
        // Beyond a square's last diagonal nothing is hidden: the window fits 32 bits.
        blocks.push_back({first_query, queries.tokens, first_key, keys.tokens, causal,
                          within ? 0 : static_cast<std::int32_t>(window)});
      }
      first_key += keys.tokens;
    }
    first_query += queries.tokens;
  }
  return blocks;
}

/// Whether a call's only block can write where the caller wants the results: the statistics of a
/// block are packed.
bool is_direct(const AttentionForwardArgs& args, const DenseBlock& block, std::int64_t kv_heads) {
  return !args.merge && !args.more && block.queries == args.shape.queries &&
         block.keys == args.shape.keys && kv_heads == args.shape.kv_heads;
}

DenseForward forward_call(const AttentionForwardArgs& args, const DenseBlock& block,
                          std::int64_t kv_heads, const Tensor<const std::uint16_t>& q,
                          const Tensor<const std::uint16_t>& k,
                          const Tensor<const std::uint16_t>& v) {
  const AttentionShape& shape = args.shape;
  const std::int64_t heads = kv_heads * (shape.heads / shape.kv_heads), size = shape.head_size;
  DenseForward call;
  call.shape = dense_shape(shape, block, heads, kv_heads);
  call.q = part_of(q, size, block.first_query);
  call.k = part_of(k, size, block.first_key);
  call.v = part_of(v, size, block.first_key);
  if (is_direct(args, block, kv_heads))
    call.o = part_of(args.o, args.o_batch, args.o_row, size, 0), call.lse = args.lse;
  else
    call.o = {nullptr, block.queries * heads * size, heads * size, size};
  return call;
}

bool forward_in_blocks(DenseAttention& dense, const AttentionForwardArgs& args,
                       std::int64_t workspace_bytes, Device& device, Stream& stream) {
  const AttentionShape& shape = args.shape;
  if (!shape.bf16_operands || shape.head_size % 8 != 0) return false;
  const auto blocks = dense_blocks(shape);
  if (!blocks) return false;
  const std::int64_t group = shape.heads / shape.kv_heads, size = shape.head_size;
  const std::int64_t bytes = shape.batch * size * 2 * (group * shape.queries + 2 * shape.keys);
  bool served = true;
  in_slices(shape.kv_heads, bytes, workspace_bytes, [&](std::int64_t, std::int64_t count) {
    for (const DenseBlock& block : *blocks)
      served = served &&
               dense.serves(forward_call(
                   args, block, count, packed_copy(shape.queries, count * group * size),
                   packed_copy(shape.keys, count * size), packed_copy(shape.keys, count * size)));
  });
  if (!served) return false;

  Buffer<float> own_sum;  // several blocks in a call that keeps no state beyond it
  if (args.sum == nullptr)
    own_sum = Buffer<float>(device, shape.batch * shape.heads * shape.queries);
  float* const sum = args.sum ? args.sum : own_sum.data();
  in_slices(shape.kv_heads, bytes, workspace_bytes, [&](std::int64_t first, std::int64_t count) {
    const std::int64_t heads = count * group;
    const Bf16Copy q({args.q + first * group * size, args.q_row, args.q_batch}, shape.batch,
                     shape.queries, heads * size, shape.query_positions, device, stream);
    const Bf16Copy k({args.k + first * size, args.kv_row, args.kv_batch}, shape.batch, shape.keys,
                     count * size, shape.key_positions, device, stream);
    const Bf16Copy v({args.v + first * size, args.kv_row, args.kv_batch}, shape.batch, shape.keys,
                     count * size, shape.key_positions, device, stream);
    std::int64_t first_query = 0;
    for (int i = 0; i < shape.query_runs.count; ++i) {
      const std::int64_t queries = shape.query_runs.run[i].tokens;
      if (queries == 0) continue;
      CombineParams state;
      state.batch = shape.batch, state.queries = queries, state.heads = heads;
      state.head_size = size;
      state.o = part_of(args.o, args.o_batch, args.o_row, size, first_query, first * group);
      state.statistic_batch = shape.heads * shape.queries;
      state.statistic_head = shape.queries;
      state.lse = args.lse + first * group * shape.queries + first_query;
      state.sum = sum + first * group * shape.queries + first_query;
      std::vector<const DenseBlock*> seen;
      for (const DenseBlock& block : *blocks)
        if (block.first_query == first_query) seen.push_back(&block);
      const auto take_in = [&](const float* block_o, const float* block_lse, bool start,
                               bool finish) {
        state.block_o = block_o, state.block_lse = block_lse;
        state.start = start, state.finish = finish;
        launch(combine, dim3(blocks_of(shape.batch * queries * heads, kWarps)), dim3(kThreads), 0,
               stream, state);
      };
      if (seen.empty()) take_in(nullptr, nullptr, !args.merge, !args.more);
      for (std::size_t j = 0; j < seen.size(); ++j) {
        DenseForward call = forward_call(args, *seen[j], count, q, k, v);
        if (call.o.data != nullptr) {
          dense.forward(call, stream);
          continue;
        }
        Buffer<float> block_o(device, shape.batch * queries * heads * size),
            block_lse(device, shape.batch * heads * queries);
        call.o.data = block_o.data();
        call.lse = block_lse.data();
        dense.forward(call, stream);
        take_in(block_o.data(), block_lse.data(), j == 0 && !args.merge,
                j + 1 == seen.size() && !args.more);
      }
      first_query += queries;
    }
  });
  return true;
}

bool backward_in_blocks(DenseAttention& dense, const AttentionBackwardArgs& args,
                        std::int64_t workspace_bytes, Device& device, Stream& stream) {
  const AttentionShape& shape = args.shape;
  if (!shape.bf16_operands || shape.head_size % 8 != 0) return false;
  const auto blocks = dense_blocks(shape);
  if (!blocks) return false;
  const std::int64_t group = shape.heads / shape.kv_heads, size = shape.head_size;
  const std::int64_t bytes = shape.batch * size * 2 * (3 * group * shape.queries + 2 * shape.keys);
  bool served = true;
  in_slices(shape.kv_heads, bytes, workspace_bytes, [&](std::int64_t, std::int64_t count) {
    const auto q = packed_copy(shape.queries, count * group * size),
               k = packed_copy(shape.keys, count * size);
    for (const DenseBlock& block : *blocks)
      served = served && dense.serves(backward_call(shape, block, count, 0, q, k, k, q, q));
  });
  if (!served) return false;

  in_slices(shape.kv_heads, bytes, workspace_bytes, [&](std::int64_t first, std::int64_t count) {
    const std::int64_t heads = count * group, statistics = shape.heads * shape.queries;
    const auto copy_queries = [&](const float* x, std::int64_t row, std::int64_t batch) {
      return Bf16Copy({x + first * group * size, row, batch}, shape.batch, shape.queries,
                      heads * size, shape.query_positions, device, stream);
    };
    const auto copy_keys = [&](const float* x) {
      return Bf16Copy({x + first * size, args.kv_row, args.kv_batch}, shape.batch, shape.keys,
                      count * size, shape.key_positions, device, stream);
    };
    const Bf16Copy q = copy_queries(args.q, args.q_row, args.q_batch),
                   dout = copy_queries(args.dout, args.dout_row, args.dout_batch),
                   k = copy_keys(args.k), v = copy_keys(args.v);
    Buffer<std::uint16_t> o(device, shape.batch * shape.queries * heads * size);
    launch(stand_in_for_o, dim3(blocks_of(shape.batch * shape.queries * heads, kWarps)),
           dim3(kThreads), 0, stream, part_of(dout, size, 0),
           args.delta + first * group * shape.queries, statistics, shape.batch, shape.queries,
           heads, size, o.data());
    const Tensor<const std::uint16_t> o_copy = {o.data(), heads * size,
                                                shape.queries * heads * size};
    for (const DenseBlock& block : *blocks) {
      Buffer<float> lse(device, shape.batch * count * block.queries),
          dq(device, shape.batch * block.queries * count * size),
          dk(device, shape.batch * block.keys * count * size), dv(device, dk.size());
      for (std::int64_t member = 0; member < group; ++member) {
        launch(pack_statistic, dim3(blocks_of(lse.size(), kThreads)), dim3(kThreads), 0, stream,
               args.lse + (first * group + member) * shape.queries + block.first_query, statistics,
               group * shape.queries, shape.batch, count, block.queries, lse.data());
        DenseBackward call = backward_call(shape, block, count, member, q, k, v, dout, o_copy);
        call.lse = lse.data();
        call.dq = dq.data(), call.dk = dk.data(), call.dv = dv.data();
        dense.backward(call, stream);
        const auto add = [&](const HeadTensor<float>& to, const Buffer<float>& from,
                             std::int64_t tokens) {
          launch(add_packed, dim3(blocks_of(from.size() / 4, kThreads)), dim3(kThreads), 0, stream,
                 to, from.data(), shape.batch, tokens, count, size);
        };
        add(part_of(args.dq, args.dq_batch, args.dq_row, size, block.first_query,
                    first * group + member, group),
            dq, block.queries);
        add(part_of(args.dk, args.dkv_batch, args.dkv_row, size, block.first_key, first), dk,
            block.keys);
        add(part_of(args.dv, args.dkv_batch, args.dkv_row, size, block.first_key, first), dv,
            block.keys);
      }
    }
  });
  return true;
}

}  // namespace longspan::model::cuda
