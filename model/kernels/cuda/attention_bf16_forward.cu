// Forward attention on matrix units: FlashAttention-2 (Dao 2023) with masks by position. A block
// has 128 queries of one head, 32 per warp, so that every fragment of keys and values serves two
// products; it walks over the tiles of 64 keys it can see, the next one being copied meanwhile.
// Scores, probabilities and results stay in registers.
#include "model/kernels/cuda/attention_bf16.cuh"

namespace longspan::model::cuda {
namespace {

constexpr int kQueries = kBf16ForwardTiles.queries, kKeys = kBf16ForwardTiles.keys;
static_assert(kQueries == kBf16Threads);

template <int kSize>
constexpr std::size_t shared_bytes() {
  return (Bf16Tile<kSize>::kPieces * (kQueries + 4 * kKeys)) * sizeof(uint4);
}

template <int kSize>
__global__ void __launch_bounds__(kBf16Threads, 2) bf16_forward(ForwardParams p) {
  using Tile = Bf16Tile<kSize>;
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 32, quad = lane % 4;
  const int queries = p.mask.queries, keys = p.mask.keys;
  // Late queries see most under a causal mask: they start first.
  const int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int head = blockIdx.y, batch = blockIdx.z, kv_head = head / p.sizes.group();
  const float scale = p.sizes.scale * kLog2OfE;
  const Tile q_tile{longspan::cuda::dynamic_shared<uint4>()};
  const Tile k_tiles{q_tile.data + Tile::pieces(kQueries)};
  const Tile v_tiles{k_tiles.data + 2 * Tile::pieces(kKeys)};
  const std::uint16_t* const k = p.k_bf16.of(batch, kv_head, kSize);
  const std::uint16_t* const v = p.v_bf16.of(batch, kv_head, kSize);
  float* const o = p.o.of(batch, head, kSize);
  float* const lse = p.lse.of(batch, head, queries);
  float* const sums = p.sum.data ? p.sum.of(batch, head, queries) : nullptr;

  const auto copy_keys = [&](int stage, int key_tile) {
    Tile{k_tiles.data + stage * Tile::pieces(kKeys)}.copy_async(k, p.k_bf16.row, key_tile * kKeys,
                                                                keys, kKeys);
    Tile{v_tiles.data + stage * Tile::pieces(kKeys)}.copy_async(v, p.v_bf16.row, key_tile * kKeys,
                                                                keys, kKeys);
  };
  TileWalk<QueryTile, KeyTile> walk(p.mask.query_tiles_of(batch)[tile], p.mask.key_tiles_of(batch),
                                    p.mask.key_tile_count);
  bool has_tile = walk.next();
  if (has_tile) copy_keys(0, walk.tile());
  commit_copies();
  q_tile.load_rounded(p.q.of(batch, head, kSize), p.q.row, tile * kQueries, queries, kQueries);

  // This thread's row r is query(r): two products of 16 rows, two rows of each.
  const auto query = [&](int r) {
    return tile * kQueries + warp_row + r / 2 * 16 + r % 2 * 8 + lane / 4;
  };
  float maximum[4], sum[4], result[2][kSize / 8][4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    maximum[r] = -INFINITY;
    sum[r] = 0.0f;
    // Not by the maximum: a query with a NaN has none, and its NaN must stay.
    const bool merged = p.merge && query(r) < queries && sums[query(r)] != 0.0f;
    if (merged) {
      maximum[r] = lse[query(r)];
      if (quad == 0) sum[r] = sums[query(r)];
    }
#pragma unroll
    for (int n = 0; n < kSize / 8; ++n) {
      const float2 before =
          merged ? *reinterpret_cast<const float2*>(o + query(r) * p.o.row + n * 8 + 2 * quad)
                 : make_float2(0.0f, 0.0f);
      result[r / 2][n][r % 2 * 2] = before.x;
      result[r / 2][n][r % 2 * 2 + 1] = before.y;
    }
  }

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

    float s[2][kKeys / 8][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] = 0.0f;
#pragma unroll
    for (int step = 0; step < kSize / 16; ++step) {
      std::uint32_t a[2][4], b[4];
      q_tile.left(warp_row, step, a[0]);
      q_tile.left(warp_row + 16, step, a[1]);
#pragma unroll
      for (int n = 0; n < kKeys / 8; n += 2) {
        k_tile.right_by_rows(n * 8, step, b);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_bf16(s[m][n], a[m], b[0], b[1]);
          mma_bf16(s[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
    if (!whole) hide_scores(p.mask, batch, query, key_tile * kKeys + 2 * quad, s);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int m = r / 2, at = r % 2 * 2;
      float top = s[m][0][at];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) top = fmaxf(top, fmaxf(s[m][n][at], s[m][n][at + 1]));
      top = over_quad(top, [](float a, float b) { return fmaxf(a, b); }) * scale;
      const float raised = fmaxf(maximum[r], top);
      // Before anything was visible: a finite stand-in, or -inf - -inf would be NaN.
      const float shift = raised == -INFINITY ? 0.0f : raised;
      const float factor = fast_exp2(maximum[r] - shift);
      maximum[r] = raised;
      sum[r] *= factor;
#pragma unroll
      for (int n = 0; n < kSize / 8; ++n) {
        result[m][n][at] *= factor;
        result[m][n][at + 1] *= factor;
      }
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          s[m][n][at + i] = fast_exp2(s[m][n][at + i] * scale - shift);
          sum[r] += s[m][n][at + i];
        }
    }
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      std::uint32_t a[2][4], b[4];
      as_left(s[0][2 * step], s[0][2 * step + 1], a[0]);
      as_left(s[1][2 * step], s[1][2 * step + 1], a[1]);
#pragma unroll
      for (int n = 0; n < kSize / 16; ++n) {
        v_tile.right_by_columns(step * 16, n, b);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_bf16(result[m][2 * n], a[m], b[0], b[1]);
          mma_bf16(result[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
    __syncthreads();  // this stage may be overwritten
  }
  wait_for_copies<0>();

#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const float total = over_quad(sum[r], [](float a, float b) { return a + b; });
    if (query(r) >= queries) continue;
    const bool empty = total == 0.0f;
    if (quad == 0) {
      if (p.more) sums[query(r)] = total;
      lse[query(r)] = p.more  ? maximum[r]
                      : empty ? -INFINITY
                              : (maximum[r] + log2f(total)) * kLnOf2;
    }
    const float factor = p.more ? 1.0f : empty ? 0.0f : 1.0f / total;
#pragma unroll
    for (int n = 0; n < kSize / 8; ++n)
      *reinterpret_cast<float2*>(o + query(r) * p.o.row + n * 8 + 2 * quad) = make_float2(
          factor * result[r / 2][n][r % 2 * 2], factor * result[r / 2][n][r % 2 * 2 + 1]);
  }
}

template <int kSize>
void launch(const ForwardParams& p, Stream& stream) {
  longspan::cuda::launch(bf16_forward<kSize>,
                         dim3(p.mask.query_tile_count, p.sizes.heads, p.sizes.batch),
                         dim3(kBf16Threads), shared_bytes<kSize>(), stream, p);
}

}  // namespace

void launch_bf16_forward(const ForwardParams& params, Stream& stream) {
  params.sizes.head_size == 64 ? launch<64>(params, stream) : launch<128>(params, stream);
}

}  // namespace longspan::model::cuda
