// Exact backward attention, with the global log-sum-exp (Dao et al. 2022, algorithm 4), without
// atomics: one kernel walks for every tile of keys over the queries that see it and sums dk and dv,
// the other for every tile of queries over the keys it sees and sums dq. Scores are computed twice;
// the order of every sum depends on the shape alone.
#include <type_traits>

#include "model/kernels/cuda/attention_fp32.cuh"

namespace longspan::model::cuda {
namespace {

/// p = exp(s - lse) and ds = p (dp - delta) of one tile of queries (rows y) and keys (columns x),
/// into shared memory. s - lse before the factor log2(e): the difference is nearly exact where p
/// matters, however large the logits are. lse is +inf for queries that see nothing.
template <int kMicro>
__device__ inline void softmax_backward(const DeviceMask& mask, int batch, bool whole,
                                        int first_query, int first_key, const float* lse,
                                        const float* delta, const float (&s)[kMicro][kMicro],
                                        const float (&dp)[kMicro][kMicro], int y, int x, float* p,
                                        float* ds) {
  constexpr int kScoreRow = kSide * kMicro + 4;
#pragma unroll
  for (int i = 0; i < kMicro; ++i) {
    const int row = y * kMicro + i;
    const MaskedQuery query = whole ? MaskedQuery{} : masked_query(mask, batch, first_query + row);
#pragma unroll
    for (int j = 0; j < kMicro; ++j) {
      const int column = x + kSide * j;
      const bool visible = whole || sees(query, masked_key(mask, batch, first_key + column));
      const float probability = visible ? exp2f((s[i][j] - lse[row]) * kLog2E) : 0.0f;
      if (p) p[row * kScoreRow + column] = probability;
      ds[row * kScoreRow + column] = visible ? probability * (dp[i][j] - delta[row]) : 0.0f;
    }
  }
}

/// The queries of a tile: those that see nothing (padding, or nothing there) become zeros with lse
/// = +inf, so that p = 0.
__device__ inline void load_queries(const BackwardParams& p, int batch, int head, int first,
                                    int rows, float* q, float* dout, float* lse, float* delta) {
  const int size = p.sizes.head_size, queries = p.mask.queries;
  const float* const all_lse = p.lse.of(batch, head, queries);
  const float* const all_delta = p.delta.of(batch, head, queries);
  const auto sees_any = [&](int query) {
    return p.mask.low[query] <= p.mask.high[query] && all_lse[query] != -INFINITY;
  };
  load_tile(p.q.of(batch, head, size), p.q.row, first, queries, rows, size, p.sizes.scale, sees_any,
            q);
  load_tile(p.dout.of(batch, head, size), p.dout.row, first, queries, rows, size, 1.0f, sees_any,
            dout);
  if (static_cast<int>(threadIdx.x) < rows) {
    const int query = first + static_cast<int>(threadIdx.x);
    const bool any = query < queries && sees_any(query);
    lse[threadIdx.x] = any ? all_lse[query] : INFINITY;
    delta[threadIdx.x] = any ? all_delta[query] : 0.0f;
  }
}

__device__ inline void load_keys(const BackwardParams& p, int batch, int kv_head, int first,
                                 int rows, float* k, float* v) {
  const int size = p.sizes.head_size, keys = p.mask.keys;
  const auto present = [&](int key) { return p.mask.key_positions[key] >= 0; };
  load_tile(p.k.of(batch, kv_head, size), p.k.row, first, keys, rows, size, 1.0f, present, k);
  load_tile(p.v.of(batch, kv_head, size), p.v.row, first, keys, rows, size, 1.0f, present, v);
}

template <int kMicro>
struct Tiles {
  static constexpr int kTile = kSide * kMicro, kScoreRow = kTile + 4;
  float *q, *dout, *k, *v, *p, *ds, *lse, *delta;
  __device__ explicit Tiles(int head_size) {
    const int tile = kTile * tile_row(head_size);
    q = longspan::cuda::dynamic_shared<float>();
    dout = q + tile;
    k = dout + tile;
    v = k + tile;
    p = v + tile;
    ds = p + kTile * kScoreRow;
    lse = ds + kTile * kScoreRow;
    delta = lse + kTile;
  }
  static std::size_t bytes(int head_size) {
    return (4 * kTile * tile_row(head_size) + 2 * kTile * kScoreRow + 2 * kTile) * sizeof(float);
  }
};

template <int kMicro, int kGroups>
__global__ void __launch_bounds__(kFp32Threads) fp32_key_gradients(BackwardParams p) {
  constexpr int kTile = kSide * kMicro, kScoreRow = kTile + 4;
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  const int size = p.sizes.head_size, group = p.sizes.group();
  const int tile = blockIdx.x, kv_head = blockIdx.y, batch = blockIdx.z;
  const Tiles<kMicro> tiles(size);
  load_keys(p, batch, kv_head, tile * kTile, kTile, tiles.k, tiles.v);
  Result<kMicro, kGroups> dk, dv;
  dk.clear();
  dv.clear();
  TileWalk<KeyTile, QueryTile> walk(p.mask.key_tiles_of(batch)[tile], p.mask.query_tiles_of(batch),
                                    p.mask.query_tile_count);
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head, walk.restart()) {
    while (walk.next()) {
      __syncthreads();  // the queries before are done with
      load_queries(p, batch, head, walk.tile() * kTile, kTile, tiles.q, tiles.dout, tiles.lse,
                   tiles.delta);
      __syncthreads();
      float s[kMicro][kMicro], dp[kMicro][kMicro];
      multiply_rows<kMicro>(tiles.q, tiles.k, size, y, x, s);
      multiply_rows<kMicro>(tiles.dout, tiles.v, size, y, x, dp);
      softmax_backward<kMicro>(p.mask, batch, walk.tile_is_whole(), walk.tile() * kTile,
                               tile * kTile, tiles.lse, tiles.delta, s, dp, y, x, tiles.p,
                               tiles.ds);
      __syncthreads();
      dv.add_product(tiles.p, 1, kScoreRow, tiles.dout, kTile, size, y, x);
      dk.add_product(tiles.ds, 1, kScoreRow, tiles.q, kTile, size, y, x);  // q has the scale in it
    }
  }
  dk.add_to(p.dk.of(batch, kv_head, size), p.dk.row, tile * kTile, p.mask.keys, size, 1.0f, y, x);
  dv.add_to(p.dv.of(batch, kv_head, size), p.dv.row, tile * kTile, p.mask.keys, size, 1.0f, y, x);
}

template <int kMicro, int kGroups>
__global__ void __launch_bounds__(kFp32Threads) fp32_query_gradients(BackwardParams p) {
  constexpr int kTile = kSide * kMicro, kScoreRow = kTile + 4;
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  const int size = p.sizes.head_size;
  const int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int head = blockIdx.y, batch = blockIdx.z;
  const Tiles<kMicro> tiles(size);
  load_queries(p, batch, head, tile * kTile, kTile, tiles.q, tiles.dout, tiles.lse, tiles.delta);
  Result<kMicro, kGroups> dq;
  dq.clear();
  TileWalk<QueryTile, KeyTile> walk(p.mask.query_tiles_of(batch)[tile], p.mask.key_tiles_of(batch),
                                    p.mask.key_tile_count);
  while (walk.next()) {
    __syncthreads();  // the keys before are done with
    load_keys(p, batch, head / p.sizes.group(), walk.tile() * kTile, kTile, tiles.k, tiles.v);
    __syncthreads();
    float s[kMicro][kMicro], dp[kMicro][kMicro];
    multiply_rows<kMicro>(tiles.q, tiles.k, size, y, x, s);
    multiply_rows<kMicro>(tiles.dout, tiles.v, size, y, x, dp);
    softmax_backward<kMicro>(p.mask, batch, walk.tile_is_whole(), tile * kTile, walk.tile() * kTile,
                             tiles.lse, tiles.delta, s, dp, y, x, nullptr, tiles.ds);
    __syncthreads();
    dq.add_product(tiles.ds, kScoreRow, 1, tiles.k, kTile, size, y, x);
  }
  dq.add_to(p.dq.of(batch, head, size), p.dq.row, tile * kTile, p.mask.queries, size, p.sizes.scale,
            y, x);
}

/// Calls f with the template arguments of a head size, as integral constants.
template <class F>
void with_sizes(int head_size, F f) {
  if (head_size <= 64)
    f(std::integral_constant<int, 2>(), std::integral_constant<int, 1>());
  else if (head_size <= 128)
    f(std::integral_constant<int, 2>(), std::integral_constant<int, 2>());
  else
    f(std::integral_constant<int, 1>(), std::integral_constant<int, 4>());
}

}  // namespace

TileSizes fp32_backward_tiles(int head_size) {
  const int tile = head_size <= 128 ? 32 : 16;
  return {tile, tile};
}

void launch_fp32_key_gradients(const BackwardParams& params, Stream& stream) {
  with_sizes(params.sizes.head_size, [&](auto micro, auto groups) {
    longspan::cuda::launch(
        fp32_key_gradients<micro(), groups()>,
        dim3(params.mask.key_tile_count, params.sizes.kv_heads, params.sizes.batch),
        dim3(kFp32Threads), Tiles<micro()>::bytes(params.sizes.head_size), stream, params);
  });
}

void launch_fp32_query_gradients(const BackwardParams& params, Stream& stream) {
  with_sizes(params.sizes.head_size, [&](auto micro, auto groups) {
    longspan::cuda::launch(
        fp32_query_gradients<micro(), groups()>,
        dim3(params.mask.query_tile_count, params.sizes.heads, params.sizes.batch),
        dim3(kFp32Threads), Tiles<micro()>::bytes(params.sizes.head_size), stream, params);
  });
}

}  // namespace longspan::model::cuda
