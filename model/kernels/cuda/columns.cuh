/// Sums over the rows of a matrix in two stages, both in an order that its shape alone fixes:
/// blocks of rows have partial sums of their own, and those are added in ascending order of their
/// groups.
#pragma once

#include <algorithm>

#include "model/kernels/cuda/device_code.cuh"
#include "parallel/device.hpp"

namespace longspan::model::cuda {

/// The terms of a plain sum: elements (row, col ...) of a matrix without gaps.
struct Elements {
  const float* x;
  std::int64_t width;
  template <int N>
  __device__ Pack<N> load(std::int64_t row, std::int64_t col) const {
    return cuda::load<N>(x + row * width + col);
  }
  /// Whether four columns may be read at once.
  bool vector() const { return width % 4 == 0 && aligned16(x); }
};

/// A block has 32 columns x 8 rows of threads and sums kColumnsPerThread * 32 columns: with N = 4 a
/// thread has neighbours and reads them at once, with N = 1 a warp reads whole lines of 128 bytes,
/// wherever the matrix begins. Both add in the same order.
constexpr int kColumnsPerThread = 4;
constexpr int kTileColumns = 32 * kColumnsPerThread;
constexpr int kTileRows = 8;

/// Rows [blockIdx.y * rows_each, ...): thread row t adds rows t, t + 8, ..., then the eight are
/// added in order. out: row blockIdx.y of [gridDim.y, cols]; `add`: out += instead of =.
template <int N, class Term>
__global__ void columns_kernel(Term term, std::int64_t rows, std::int64_t cols,
                               std::int64_t rows_each, float* out, bool add) {
  __shared__ float parts[kTileRows][kTileColumns];
  const std::int64_t first = blockIdx.y * rows_each;
  const std::int64_t end = first + rows_each < rows ? first + rows_each : rows;
  const std::int64_t left = static_cast<std::int64_t>(blockIdx.x) * kTileColumns;
  constexpr int kPacks = kColumnsPerThread / N;
  const auto column = [](int pack) { return static_cast<int>(threadIdx.x) * N + 32 * N * pack; };
  Pack<N> sums[kPacks];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) sums[p] = zero_pack<N>();
#pragma unroll 4
  for (std::int64_t row = first + threadIdx.y; row < end; row += kTileRows) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (left + column(p) >= cols) continue;
      const Pack<N> terms = term.template load<N>(row, left + column(p));
#pragma unroll
      for (int j = 0; j < N; ++j) sums[p].v[j] += terms.v[j];
    }
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
#pragma unroll
    for (int j = 0; j < N; ++j) parts[threadIdx.y][column(p) + j] = sums[p].v[j];
  }
  __syncthreads();
  const int mine = static_cast<int>(threadIdx.y * 32 + threadIdx.x);
  const std::int64_t col = left + mine;
  if (mine >= kTileColumns || col >= cols) return;
  float sum = 0.0f;
#pragma unroll
  for (int t = 0; t < kTileRows; ++t) sum += parts[t][mine];
  float* place = out + blockIdx.y * cols + col;
  *place = add ? *place + sum : sum;
}

template <class Term>
void launch_columns(dim3 grid, const Term& term, std::int64_t rows, std::int64_t cols,
                    std::int64_t rows_each, float* out, bool add, Stream& stream) {
  const dim3 block(32, kTileRows);
  if (term.vector())
    launch(columns_kernel<4, Term>, grid, block, 0, stream, term, rows, cols, rows_each, out, add);
  else
    launch(columns_kernel<1, Term>, grid, block, 0, stream, term, rows, cols, rows_each, out, add);
}

/// y[col] += the sum over rows of the terms (row, col). The terms are `cols` wide.
template <class Term>
void add_columns(std::int64_t rows, std::int64_t cols, const Term& term, float* y, Device& device,
                 Stream& stream) {
  if (rows <= 0 || cols <= 0) return;
  const unsigned tiles = blocks_for(cols, kTileColumns);
  // As many blocks as fill the largest GPUs (2112 of 256 threads), at least 64 rows each.
  const std::int64_t wanted = std::clamp<std::int64_t>(2112 / tiles, 1, 512);
  const std::int64_t rows_each = std::max<std::int64_t>(64, (rows + wanted - 1) / wanted);
  const std::int64_t blocks = (rows + rows_each - 1) / rows_each;
  if (blocks == 1) return launch_columns(dim3(tiles), term, rows, cols, rows_each, y, true, stream);
  const Buffer<float> partials(device, blocks, cols);
  launch_columns(dim3(tiles, static_cast<unsigned>(blocks)), term, rows, cols, rows_each,
                 partials.data(), false, stream);
  launch_columns(dim3(tiles), Elements{partials.data(), cols}, blocks, cols, blocks, y, true,
                 stream);
}

}  // namespace longspan::model::cuda
