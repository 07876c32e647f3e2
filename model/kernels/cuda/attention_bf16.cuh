/// What the attention kernels on matrix units share: tiles of bf16 in shared memory, how they are
/// filled and how fragments are read from them. Four warps a block. Read next:
/// attention_bf16_forward.cu; layouts of fragments: mma.cuh.
#pragma once

#include "model/kernels/cuda/attention_params.cuh"
#include "model/kernels/cuda/mma.cuh"

namespace longspan::model::cuda {

inline constexpr int kBf16Threads = 128;
inline constexpr float kLog2OfE = 1.44269504f;
inline constexpr float kLnOf2 = 0.693147181f;

/// A tile of tokens x kSize in bf16: 16-byte pieces of 8 numbers, those of a row permuted by the
/// row's number, so that the 8 rows ldmatrix reads at a time are in different banks.
template <int kSize>
struct Bf16Tile {
  static constexpr int kPieces = kSize / 8;
  uint4* data;

  __device__ uint4* piece(int row, int piece) const {
    return data + row * kPieces + (piece ^ (row & 7));
  }
  __device__ static constexpr int pieces(int rows) { return rows * kPieces; }

  /// Fragment A of rows [row, row + 16) and columns [16 step, 16 step + 16).
  __device__ void left(int row, int step, std::uint32_t (&a)[4]) const {
    const int lane = threadIdx.x % 32;
    load_matrices(a, piece(row + lane % 16, 2 * step + lane / 16));
  }
  /// Fragments B of two 16x8 matrices whose columns are the tile's rows [row, row + 16) and whose
  /// rows its columns [16 step, 16 step + 16): b[0], b[1] the first, b[2], b[3] the second.
  __device__ void right_by_rows(int row, int step, std::uint32_t (&b)[4]) const {
    const int lane = threadIdx.x % 32;
    load_matrices(b, piece(row + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
  }
  /// The same of two whose rows are the tile's rows [row, row + 16) and whose columns are its
  /// columns [16 step, 16 step + 16).
  __device__ void right_by_columns(int row, int step, std::uint32_t (&b)[4]) const {
    const int lane = threadIdx.x % 32;
    load_matrices_transposed(b, piece(row + lane % 16, 2 * step + lane / 16));
  }

  /// Starts copying tokens [first, first + rows) of one head; zeros past `count`.
  __device__ void copy_async(const std::uint16_t* from, std::int64_t from_row, int first, int count,
                             int rows) const {
    for (int i = threadIdx.x; i < rows * kPieces; i += kBf16Threads) {
      const int row = i / kPieces, part = i % kPieces, token = first + row;
      const bool present = token < count;
      copy_16_async(piece(row, part), from + (present ? token : 0) * from_row + part * 8, present);
    }
  }
  /// The same of fp32 tokens, rounded, at once.
  __device__ void load_rounded(const float* from, std::int64_t from_row, int first, int count,
                               int rows) const {
    for (int i = threadIdx.x; i < rows * kPieces; i += kBf16Threads) {
      const int row = i / kPieces, part = i % kPieces, token = first + row;
      uint4 packed = make_uint4(0, 0, 0, 0);
      if (token < count) {
        const float4* const at =
            reinterpret_cast<const float4*>(from + token * from_row) + 2 * part;
        const float4 a = at[0], b = at[1];
        packed = make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y),
                            pack_bf16(b.z, b.w));
      }
      *piece(row, part) = packed;
    }
  }
};

/// Fragment A of 16 columns from the results of two neighbouring 16x8 products.
__device__ inline void as_left(const float (&first)[4], const float (&second)[4],
                               std::uint32_t (&a)[4]) {
  a[0] = pack_bf16(first[0], first[1]);
  a[1] = pack_bf16(first[2], first[3]);
  a[2] = pack_bf16(second[0], second[1]);
  a[3] = pack_bf16(second[2], second[3]);
}

/// Scores of keys that a query does not see become -inf: s[m][n][...] of a warp's 32 queries, of
/// which this lane has query(0..3), by 8 kBlocks keys, of which it has first_key and the next one
/// of every 8.
template <int kBlocks, class Mask, class Query>
__device__ inline void hide_scores(const Mask& mask, int batch, const Query& query, int first_key,
                                   float (&s)[2][kBlocks][4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const MaskedQuery row = masked_query(mask, batch, query(r));
#pragma unroll
    for (int n = 0; n < kBlocks; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (!sees(row, masked_key(mask, batch, first_key + n * 8 + i)))
          s[r / 2][n][r % 2 * 2 + i] = -INFINITY;
  }
}

/// The sum, or another reduction, over the four lanes that share a row of results.
template <class Combine>
__device__ inline float over_quad(float x, Combine combine) {
  x = combine(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return combine(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

}  // namespace longspan::model::cuda
