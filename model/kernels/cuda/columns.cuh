/// Sums over the rows of a matrix in two stages, both in an order that its shape alone fixes:
/// blocks of rows have partial sums of their own, and those are added in ascending order of their
/// groups.
#pragma once

#include <algorithm>

#include "model/kernels/cuda/device_code.cuh"
#include "parallel/device.hpp"

namespace longspan::model::cuda {

/// The term of a plain sum: element (row, col) of a matrix without gaps.
struct Elements {
  const float* x;
  std::int64_t width;
  __device__ float operator()(std::int64_t row, std::int64_t col) const {
    return x[row * width + col];
  }
};

/// A block has 32 columns x 8 rows of threads and sums kColumnsPerThread * 32 columns: a warp reads
/// whole lines of 128 bytes, wherever the matrix begins.
constexpr int kColumnsPerThread = 2;
constexpr int kTileColumns = 32 * kColumnsPerThread;
constexpr int kTileRows = 8;

/// Rows [blockIdx.y * rows_each, ...): thread row t adds rows t, t + 8, ..., then the eight are
/// added in order. out: row blockIdx.y of [gridDim.y, cols]; `add`: out += instead of =.
template <class Term>
__global__ void columns_kernel(Term term, std::int64_t rows, std::int64_t cols,
                               std::int64_t rows_each, float* out, bool add) {
  __shared__ float parts[kTileRows][kTileColumns];
  const std::int64_t first = blockIdx.y * rows_each;
  const std::int64_t end = first + rows_each < rows ? first + rows_each : rows;
  const std::int64_t left = static_cast<std::int64_t>(blockIdx.x) * kTileColumns + threadIdx.x;
  float sums[kColumnsPerThread];
#pragma unroll
  for (int c = 0; c < kColumnsPerThread; ++c) sums[c] = 0.0f;
#pragma unroll 8
  for (std::int64_t row = first + threadIdx.y; row < end; row += kTileRows) {
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c)
      if (left + 32 * c < cols) sums[c] += term(row, left + 32 * c);
  }
#pragma unroll
  for (int c = 0; c < kColumnsPerThread; ++c) parts[threadIdx.y][threadIdx.x + 32 * c] = sums[c];
  __syncthreads();
  const int mine = static_cast<int>(threadIdx.y * 32 + threadIdx.x);
  const std::int64_t col = static_cast<std::int64_t>(blockIdx.x) * kTileColumns + mine;
  if (mine >= kTileColumns || col >= cols) return;
  float sum = 0.0f;
#pragma unroll
  for (int t = 0; t < kTileRows; ++t) sum += parts[t][mine];
  float* place = out + blockIdx.y * cols + col;
  *place = add ? *place + sum : sum;
}

/// y[col] += the sum over rows of term(row, col).
template <class Term>
void add_columns(std::int64_t rows, std::int64_t cols, const Term& term, float* y, Device& device,
                 Stream& stream) {
  if (rows <= 0 || cols <= 0) return;
  const unsigned tiles = blocks_for(cols, kTileColumns);
  const dim3 block(32, kTileRows);
  // As many blocks as fill the largest GPUs (2112 of 256 threads), at least 64 rows each.
  const std::int64_t wanted = std::clamp<std::int64_t>(2112 / tiles, 1, 512);
  const std::int64_t rows_each = std::max<std::int64_t>(64, (rows + wanted - 1) / wanted);
  const std::int64_t blocks = (rows + rows_each - 1) / rows_each;
  if (blocks == 1) {
    launch(columns_kernel<Term>, dim3(tiles), block, 0, stream, term, rows, cols, rows_each, y,
           true);
    return;
  }
  const Buffer<float> partials(device, blocks, cols);
  launch(columns_kernel<Term>, dim3(tiles, static_cast<unsigned>(blocks)), block, 0, stream, term,
         rows, cols, rows_each, partials.data(), false);
  const Elements elements{partials.data(), cols};
  launch(columns_kernel<Elements>, dim3(tiles), block, 0, stream, elements, blocks, cols, blocks, y,
         true);
}

}  // namespace longspan::model::cuda
