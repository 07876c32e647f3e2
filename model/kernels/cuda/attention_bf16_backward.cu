// Backward attention on matrix units, with the global log-sum-exp (Dao 2023), without atomics: one
// kernel per gradient, as in attention_fp32_backward.cu. Scores are computed as the transpose that
// lets a product's result be the left side of the next without leaving the registers: keys by
// queries for dk and dv, queries by keys for dq.
#include "model/kernels/cuda/attention_bf16.cuh"

namespace longspan::model::cuda {
namespace {

template <int kCount>
__device__ inline void clear(float (&c)[kCount][4]) {
#pragma unroll
  for (int n = 0; n < kCount; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] = 0.0f;
}

/// To exp2's argument; +inf for queries that see nothing anywhere, so that p = 0.
__device__ inline float shift_of(float lse) {
  return lse == -INFINITY ? INFINITY : lse * kLog2OfE;
}

/// c += left rows [row, row + 16) times right rows [0, 8 kCount), over the columns of both.
template <int kSize, int kCount>
__device__ inline void multiply(const Bf16Tile<kSize>& left, int row, const Bf16Tile<kSize>& right,
                                float (&c)[kCount][4]) {
#pragma unroll
  for (int step = 0; step < kSize / 16; ++step) {
    std::uint32_t a[4], b[4];
    left.left(row, step, a);
#pragma unroll
    for (int n = 0; n < kCount; n += 2) {
      right.right_by_rows(n * 8, step, b);
      mma_bf16(c[n], a, b[0], b[1]);
      mma_bf16(c[n + 1], a, b[2], b[3]);
    }
  }
}

/// c[rows of p x kSize] += p times the rows [0, 8 kCount) of right.
template <int kSize, int kCount>
__device__ inline void multiply_add(const float (&p)[kCount][4], const Bf16Tile<kSize>& right,
                                    float (&c)[kSize / 8][4]) {
#pragma unroll
  for (int step = 0; step < kCount / 2; ++step) {
    std::uint32_t a[4], b[4];
    as_left(p[2 * step], p[2 * step + 1], a);
#pragma unroll
    for (int n = 0; n < kSize / 16; ++n) {
      right.right_by_columns(step * 16, n, b);
      mma_bf16(c[2 * n], a, b[0], b[1]);
      mma_bf16(c[2 * n + 1], a, b[2], b[3]);
    }
  }
}

/// Rows `token` and token + 8 of the gradient += factor * c.
template <int kSize>
__device__ inline void add_rows(const float (&c)[kSize / 8][4], float factor, float* to,
                                std::int64_t to_row, int token, int count) {
  const int quad = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (token + half * 8 >= count) continue;
#pragma unroll
    for (int n = 0; n < kSize / 8; ++n) {
      float2* const at =
          reinterpret_cast<float2*>(to + (token + half * 8) * to_row + n * 8 + 2 * quad);
      float2 value = *at;
      value.x += factor * c[n][2 * half];
      value.y += factor * c[n][2 * half + 1];
      *at = value;
    }
  }
}

template <int kSize>
struct KeyGradientTiles {
  static constexpr int kQueries = kBf16KeyGradientTiles.queries, kKeys = kBf16KeyGradientTiles.keys;
  static constexpr int kPieces = Bf16Tile<kSize>::kPieces;
  static constexpr std::size_t kBytes =
      (2 * kKeys + 4 * kQueries) * kPieces * sizeof(uint4) + 4 * kQueries * sizeof(float);
  static_assert(kKeys == 16 * kBf16Threads / 32);
};

template <int kSize>
__global__ void __launch_bounds__(kBf16Threads, 2) bf16_key_gradients(BackwardParams p) {
  using Tile = Bf16Tile<kSize>;
  using Tiles = KeyGradientTiles<kSize>;
  constexpr int kQueries = Tiles::kQueries, kKeys = Tiles::kKeys;
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16, quad = lane % 4;
  const int queries = p.mask.queries, keys = p.mask.keys, group = p.sizes.group();
  const int tile = blockIdx.x, kv_head = blockIdx.y, batch = blockIdx.z;
  const float scale = p.sizes.scale * kLog2OfE;
  const Tile k_tile{longspan::cuda::dynamic_shared<uint4>()};
  const Tile v_tile{k_tile.data + Tile::pieces(kKeys)};
  const Tile q_tiles{v_tile.data + Tile::pieces(kKeys)};
  const Tile dout_tiles{q_tiles.data + 2 * Tile::pieces(kQueries)};
  float* const lse_rows =
      reinterpret_cast<float*>(dout_tiles.data + 2 * Tile::pieces(kQueries));  // two stages
  float* const delta_rows = lse_rows + 2 * kQueries;

  const auto copy_queries = [&](int stage, int head, int query_tile) {
    const int first = query_tile * kQueries;
    Tile{q_tiles.data + stage * Tile::pieces(kQueries)}.copy_async(
        p.q_bf16.of(batch, head, kSize), p.q_bf16.row, first, queries, kQueries);
    Tile{dout_tiles.data + stage * Tile::pieces(kQueries)}.copy_async(
        p.dout_bf16.of(batch, head, kSize), p.dout_bf16.row, first, queries, kQueries);
    // One thread, one number. Past the end: q and dout are zeros, so whatever p is adds nothing.
    static_assert(2 * kQueries == kBf16Threads);
    const int row = threadIdx.x % kQueries, query = first + row;
    const float* const from =
        threadIdx.x < kQueries ? p.lse.of(batch, head, queries) : p.delta.of(batch, head, queries);
    float* const to = threadIdx.x < kQueries ? lse_rows : delta_rows;
    copy_4_async(to + stage * kQueries + row, from + (query < queries ? query : 0),
                 query < queries);
  };
  TileWalk<KeyTile, QueryTile> walk(p.mask.key_tiles_of(batch)[tile], p.mask.query_tiles_of(batch),
                                    p.mask.query_tile_count);
  int head = kv_head * group;
  const auto next = [&] {
    while (!walk.next()) {
      if (++head == (kv_head + 1) * group) return false;
      walk.restart();
    }
    return true;
  };

  k_tile.copy_async(p.k_bf16.of(batch, kv_head, kSize), p.k_bf16.row, tile * kKeys, keys, kKeys);
  v_tile.copy_async(p.v_bf16.of(batch, kv_head, kSize), p.v_bf16.row, tile * kKeys, keys, kKeys);
  bool has_tile = next();
  if (has_tile) copy_queries(0, head, walk.tile());
  commit_copies();
  float dk[kSize / 8][4], dv[kSize / 8][4];
  clear(dk);
  clear(dv);
  const int first_key = tile * kKeys + warp_row + lane / 4;  // and the one 8 later
  for (int stage = 0; has_tile; stage ^= 1) {
    const int query_tile = walk.tile();
    const bool whole = walk.tile_is_whole();
    has_tile = next();
    if (has_tile) copy_queries(stage ^ 1, head, walk.tile());
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    const Tile q_tile{q_tiles.data + stage * Tile::pieces(kQueries)};
    const Tile dout_tile{dout_tiles.data + stage * Tile::pieces(kQueries)};

    float s[kQueries / 8][4], dp[kQueries / 8][4];
    clear(s);
    clear(dp);
    multiply(k_tile, warp_row, q_tile, s);
    multiply(v_tile, warp_row, dout_tile, dp);
    if (!whole) {
      const MaskedKey rows[2] = {masked_key(p.mask, batch, first_key),
                                 masked_key(p.mask, batch, first_key + 8)};
#pragma unroll
      for (int n = 0; n < kQueries / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const MaskedQuery query =
              masked_query(p.mask, batch, query_tile * kQueries + n * 8 + 2 * quad + i);
          if (!sees(query, rows[0])) s[n][i] = -INFINITY;
          if (!sees(query, rows[1])) s[n][2 + i] = -INFINITY;
        }
    }
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = stage * kQueries + n * 8 + 2 * quad + i;
        const float shift = shift_of(lse_rows[row]);
        const float delta = shift == INFINITY ? 0.0f : delta_rows[row];
#pragma unroll
        for (int half = 0; half < 4; half += 2) {
          s[n][half + i] = fast_exp2(s[n][half + i] * scale - shift);
          dp[n][half + i] = s[n][half + i] * (dp[n][half + i] - delta);
        }
      }
    multiply_add<kSize>(s, dout_tile, dv);
    multiply_add<kSize>(dp, q_tile, dk);
    __syncthreads();  // this stage may be overwritten
  }
  wait_for_copies<0>();
  add_rows<kSize>(dk, p.sizes.scale, p.dk.of(batch, kv_head, kSize), p.dk.row, first_key, keys);
  add_rows<kSize>(dv, 1.0f, p.dv.of(batch, kv_head, kSize), p.dv.row, first_key, keys);
}

template <int kSize>
struct QueryGradientTiles {
  static constexpr int kQueries = kBf16QueryGradientTiles.queries,
                       kKeys = kBf16QueryGradientTiles.keys;
  static constexpr std::size_t kBytes =
      (2 * kQueries + 4 * kKeys) * Bf16Tile<kSize>::kPieces * sizeof(uint4);
  static_assert(kQueries == kBf16Threads);
};

template <int kSize>
__global__ void __launch_bounds__(kBf16Threads, 2) bf16_query_gradients(BackwardParams p) {
  using Tile = Bf16Tile<kSize>;
  using Tiles = QueryGradientTiles<kSize>;
  constexpr int kQueries = Tiles::kQueries, kKeys = Tiles::kKeys;
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 32, quad = lane % 4;
  const int queries = p.mask.queries, keys = p.mask.keys;
  const int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int head = blockIdx.y, batch = blockIdx.z, kv_head = head / p.sizes.group();
  const float scale = p.sizes.scale * kLog2OfE;
  const Tile q_tile{longspan::cuda::dynamic_shared<uint4>()};
  const Tile dout_tile{q_tile.data + Tile::pieces(kQueries)};
  const Tile k_tiles{dout_tile.data + Tile::pieces(kQueries)};
  const Tile v_tiles{k_tiles.data + 2 * Tile::pieces(kKeys)};
  const std::uint16_t* const k = p.k_bf16.of(batch, kv_head, kSize);
  const std::uint16_t* const v = p.v_bf16.of(batch, kv_head, kSize);
  const auto copy_keys = [&](int stage, int key_tile) {
    Tile{k_tiles.data + stage * Tile::pieces(kKeys)}.copy_async(k, p.k_bf16.row, key_tile * kKeys,
                                                                keys, kKeys);
    Tile{v_tiles.data + stage * Tile::pieces(kKeys)}.copy_async(v, p.v_bf16.row, key_tile * kKeys,
                                                                keys, kKeys);
  };

  q_tile.copy_async(p.q_bf16.of(batch, head, kSize), p.q_bf16.row, tile * kQueries, queries,
                    kQueries);
  dout_tile.copy_async(p.dout_bf16.of(batch, head, kSize), p.dout_bf16.row, tile * kQueries,
                       queries, kQueries);
  TileWalk<QueryTile, KeyTile> walk(p.mask.query_tiles_of(batch)[tile], p.mask.key_tiles_of(batch),
                                    p.mask.key_tile_count);
  bool has_tile = walk.next();
  if (has_tile) copy_keys(0, walk.tile());
  commit_copies();
  const auto query = [&](int r) {
    return tile * kQueries + warp_row + r / 2 * 16 + r % 2 * 8 + lane / 4;
  };
  float shift[4], delta[4], dq[2][kSize / 8][4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const bool present = query(r) < queries;
    shift[r] = present ? shift_of(p.lse.of(batch, head, queries)[query(r)]) : INFINITY;
    delta[r] = shift[r] != INFINITY ? p.delta.of(batch, head, queries)[query(r)] : 0.0f;
  }
  clear(dq[0]);
  clear(dq[1]);
  for (int stage = 0; has_tile; stage ^= 1) {
    const int key_tile = walk.tile();
    const bool whole = walk.tile_is_whole();
    has_tile = walk.next();
    if (has_tile) copy_keys(stage ^ 1, walk.tile());
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    const Tile k_tile{k_tiles.data + stage * Tile::pieces(kKeys)};
    const Tile v_tile{v_tiles.data + stage * Tile::pieces(kKeys)};

    float s[2][kKeys / 8][4], dp[2][kKeys / 8][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      clear(s[m]);
      clear(dp[m]);
    }
#pragma unroll
    for (int step = 0; step < kSize / 16; ++step) {
      std::uint32_t a[2][4], c[2][4], b[4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        q_tile.left(warp_row + m * 16, step, a[m]);
        dout_tile.left(warp_row + m * 16, step, c[m]);
      }
#pragma unroll
      for (int n = 0; n < kKeys / 8; n += 2) {
        k_tile.right_by_rows(n * 8, step, b);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_bf16(s[m][n], a[m], b[0], b[1]);
          mma_bf16(s[m][n + 1], a[m], b[2], b[3]);
        }
        v_tile.right_by_rows(n * 8, step, b);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_bf16(dp[m][n], c[m], b[0], b[1]);
          mma_bf16(dp[m][n + 1], c[m], b[2], b[3]);
        }
      }
    }
    if (!whole) hide_scores(p.mask, batch, query, key_tile * kKeys + 2 * quad, s);
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = r % 2 * 2; i < r % 2 * 2 + 2; ++i)
          dp[r / 2][n][i] =
              fast_exp2(s[r / 2][n][i] * scale - shift[r]) * (dp[r / 2][n][i] - delta[r]);
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      std::uint32_t a[2][4], b[4];
      as_left(dp[0][2 * step], dp[0][2 * step + 1], a[0]);
      as_left(dp[1][2 * step], dp[1][2 * step + 1], a[1]);
#pragma unroll
      for (int n = 0; n < kSize / 16; ++n) {
        k_tile.right_by_columns(step * 16, n, b);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_bf16(dq[m][2 * n], a[m], b[0], b[1]);
          mma_bf16(dq[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
    __syncthreads();  // this stage may be overwritten
  }
  wait_for_copies<0>();
#pragma unroll
  for (int m = 0; m < 2; ++m)
    add_rows<kSize>(dq[m], p.sizes.scale, p.dq.of(batch, head, kSize), p.dq.row, query(2 * m),
                    queries);
}

template <int kSize>
void launch_key(const BackwardParams& p, Stream& stream) {
  longspan::cuda::launch(bf16_key_gradients<kSize>,
                         dim3(p.mask.key_tile_count, p.sizes.kv_heads, p.sizes.batch),
                         dim3(kBf16Threads), KeyGradientTiles<kSize>::kBytes, stream, p);
}

template <int kSize>
void launch_query(const BackwardParams& p, Stream& stream) {
  longspan::cuda::launch(bf16_query_gradients<kSize>,
                         dim3(p.mask.query_tile_count, p.sizes.heads, p.sizes.batch),
                         dim3(kBf16Threads), QueryGradientTiles<kSize>::kBytes, stream, p);
}

}  // namespace

void launch_bf16_key_gradients(const BackwardParams& params, Stream& stream) {
  params.sizes.head_size == 64 ? launch_key<64>(params, stream) : launch_key<128>(params, stream);
}

void launch_bf16_query_gradients(const BackwardParams& params, Stream& stream) {
  params.sizes.head_size == 64 ? launch_query<64>(params, stream)
                               : launch_query<128>(params, stream);
}

}  // namespace longspan::model::cuda
