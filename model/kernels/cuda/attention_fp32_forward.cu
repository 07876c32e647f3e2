// Exact forward attention: one block per (sequence, head, tile of queries) walks over the tiles of
// keys it can see, with an online softmax in base 2 (Milakov & Gimelshein 2018; Dao et al. 2022,
// algorithm 1).
#include "model/kernels/cuda/attention_fp32.cuh"

namespace longspan::model::cuda {
namespace {

/// Reduces over the 16 lanes that share rows.
template <class Combine>
__device__ inline float over_row(float x, Combine combine) {
#pragma unroll
  for (int distance = kSide / 2; distance > 0; distance /= 2)
    x = combine(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}

template <int kMicro, int kGroups>
__global__ void __launch_bounds__(kFp32Threads) fp32_forward(ForwardParams p) {
  constexpr int kTile = kSide * kMicro, kScoreRow = kTile + 4;
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  const int size = p.sizes.head_size, queries = p.mask.queries, keys = p.mask.keys;
  // Late queries see most under a causal mask: they start first.
  const int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int head = blockIdx.y, batch = blockIdx.z, kv_head = head / p.sizes.group();
  const int first_query = tile * kTile;
  float* const q_tile = longspan::cuda::dynamic_shared<float>();
  float* const kv_tile = q_tile + kTile * tile_row(size);
  float* const scores = kv_tile + kTile * tile_row(size);
  const float *const k = p.k.of(batch, kv_head, size), *const v = p.v.of(batch, kv_head, size);
  float* const o = p.o.of(batch, head, size);
  float* const lse = p.lse.of(batch, head, queries);
  float* const sums = p.sum.data ? p.sum.of(batch, head, queries) : nullptr;

  MaskedQuery rows[kMicro];
  float maximum[kMicro], sum[kMicro];  // in units of log2; of this thread's keys
  Result<kMicro, kGroups> result;
  result.clear();
#pragma unroll
  for (int i = 0; i < kMicro; ++i) {
    const int query = first_query + y * kMicro + i;
    rows[i] = masked_query(p.mask, batch, query);
    maximum[i] = -INFINITY;
    sum[i] = 0.0f;
    // Not by the maximum: a query with a NaN has none, and its NaN must stay.
    if (!p.merge || query >= queries || sums[query] == 0.0f) continue;
    maximum[i] = lse[query];
    if (x == 0) sum[i] = sums[query];
#pragma unroll
    for (int n = 0; n < kGroups; ++n)
      if (64 * n + 4 * x < size)
        result.sum[i][n] = *reinterpret_cast<const float4*>(o + query * p.o.row + 64 * n + 4 * x);
  }
  load_tile(
      p.q.of(batch, head, size), p.q.row, first_query, queries, kTile, size, p.sizes.scale,
      [](int) { return true; }, q_tile);

  const auto present = [&](int key) { return p.mask.key_positions[key] >= 0; };
  TileWalk<QueryTile, KeyTile> walk(p.mask.query_tiles_of(batch)[tile], p.mask.key_tiles_of(batch),
                                    p.mask.key_tile_count);
  while (walk.next()) {
    const int first_key = walk.tile() * kTile;
    __syncthreads();  // the values before are done with
    load_tile(k, p.k.row, first_key, keys, kTile, size, 1.0f, present, kv_tile);
    __syncthreads();
    float s[kMicro][kMicro];
    multiply_rows<kMicro>(q_tile, kv_tile, size, y, x, s);
    if (!walk.tile_is_whole()) {
#pragma unroll
      for (int j = 0; j < kMicro; ++j) {
        const MaskedKey key = masked_key(p.mask, batch, first_key + x + kSide * j);
#pragma unroll
        for (int i = 0; i < kMicro; ++i)
          if (!sees(rows[i], key)) s[i][j] = -INFINITY;
      }
    }
    __syncthreads();  // the keys are done with
    load_tile(v, p.v.row, first_key, keys, kTile, size, 1.0f, present, kv_tile);
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
      float top = s[i][0];
#pragma unroll
      for (int j = 1; j < kMicro; ++j) top = fmaxf(top, s[i][j]);
      top = over_row(top, [](float a, float b) { return fmaxf(a, b); }) * kLog2E;
      const float raised = fmaxf(maximum[i], top);
      // Before anything was visible: a finite stand-in, or -inf - -inf would be NaN.
      const float shift = raised == -INFINITY ? 0.0f : raised;
      const float factor = exp2f(maximum[i] - shift);
      maximum[i] = raised;
      sum[i] *= factor;
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        result.sum[i][n].x *= factor, result.sum[i][n].y *= factor;
        result.sum[i][n].z *= factor, result.sum[i][n].w *= factor;
      }
#pragma unroll
      for (int j = 0; j < kMicro; ++j) {
        const float probability = exp2f(multiply_add(s[i][j], kLog2E, -shift));
        sum[i] += probability;
        scores[(y * kMicro + i) * kScoreRow + x + kSide * j] = probability;
      }
    }
    __syncthreads();
    result.add_product(scores, kScoreRow, 1, kv_tile, kTile, size, y, x);
  }

#pragma unroll
  for (int i = 0; i < kMicro; ++i) {
    const int query = first_query + y * kMicro + i;
    const float total = over_row(sum[i], [](float a, float b) { return a + b; });
    if (query >= queries) continue;
    const bool empty = total == 0.0f;
    if (x == 0) {
      if (p.more) sums[query] = total;
      lse[query] = p.more ? maximum[i] : empty ? -INFINITY : (maximum[i] + log2f(total)) * kLn2;
    }
    const float factor = p.more ? 1.0f : empty ? 0.0f : 1.0f / total;
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      if (64 * n + 4 * x >= size) continue;
      const float4 value = result.sum[i][n];
      *reinterpret_cast<float4*>(o + query * p.o.row + 64 * n + 4 * x) =
          make_float4(factor * value.x, factor * value.y, factor * value.z, factor * value.w);
    }
  }
}

template <int kMicro, int kGroups>
void launch(const ForwardParams& p, Stream& stream) {
  constexpr int kTile = kSide * kMicro;
  const std::size_t shared =
      (2 * kTile * tile_row(p.sizes.head_size) + kTile * (kTile + 4)) * sizeof(float);
  longspan::cuda::launch(fp32_forward<kMicro, kGroups>,
                         dim3(p.mask.query_tile_count, p.sizes.heads, p.sizes.batch),
                         dim3(kFp32Threads), shared, stream, p);
}

}  // namespace

// Two rows of 256 columns per thread would not fit the registers of larger tiles, nor the tiles the
// 99 KiB of shared memory that every GPU has.
TileSizes fp32_forward_tiles(int head_size) {
  const int tile = head_size <= 128 ? 64 : 32;
  return {tile, tile};
}

void launch_fp32_forward(const ForwardParams& params, Stream& stream) {
  const int size = params.sizes.head_size;
  if (size <= 64)
    launch<4, 1>(params, stream);
  else if (size <= 128)
    launch<4, 2>(params, stream);
  else
    launch<2, 4>(params, stream);
}

}  // namespace longspan::model::cuda
