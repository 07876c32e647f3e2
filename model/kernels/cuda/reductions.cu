#include "model/kernels/cuda/columns.cuh"
#include "model/kernels/cuda/device_code.cuh"
#include "model/kernels/cuda/kernels_cuda.hpp"

namespace longspan::model::cuda {
namespace {

constexpr int kSumThreads = 256;
constexpr std::int64_t kSumBlock = 16384;  ///< elements a block squares

/// Thread t has elements 4t .. 4t+3, then those 1024 further on, and so on, whether or not it can
/// read four at once: the order depends on `count` alone.
template <bool kVector>
__global__ void sum_of_squares_kernel(std::int64_t count, const float* x, double* sums) {
  __shared__ double scratch[32];
  const std::int64_t begin = blockIdx.x * kSumBlock;
  const std::int64_t end = begin + kSumBlock < count ? begin + kSumBlock : count;
  double sum[1] = {0.0};
#pragma unroll 4
  for (std::int64_t i = begin + 4 * threadIdx.x; i < end; i += 4 * kSumThreads) {
    Pack<4> pack = zero_pack<4>();
    if (kVector && i + 4 <= end) {
      pack = load<4>(x + i);
    } else {
      for (int j = 0; j < 4; ++j)
        if (i + j < end) pack.v[j] = x[i + j];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
      sum[0] = fma(static_cast<double>(pack.v[j]), static_cast<double>(pack.v[j]), sum[0]);
  }
  team_sum(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum[0];
}

__global__ void add_sums_kernel(std::int64_t count, double* sums) {
  __shared__ double scratch[32];
  double sum[1] = {0.0};
  for (std::int64_t i = threadIdx.x; i < count; i += kSumThreads) sum[0] += sums[i];
  team_sum(sum, scratch);
  // Thread 0 has read sums[0] before the threads met.
  if (threadIdx.x == 0) sums[0] = sum[0];
}

}  // namespace

void add_column_sums(std::int64_t rows, std::int64_t cols, const float* x, float* y, Device& device,
                     Stream& stream) {
  add_columns(rows, cols, Elements{x, cols}, y, device, stream);
}

double sum_of_squares(std::int64_t count, const float* x, Device& device, Stream& stream) {
  if (count <= 0) return 0.0;
  const unsigned blocks = blocks_for(count, kSumBlock);
  const Buffer<double> sums(device, blocks);
  if (aligned16(x))
    launch(sum_of_squares_kernel<true>, blocks, kSumThreads, 0, stream, count, x, sums.data());
  else
    launch(sum_of_squares_kernel<false>, blocks, kSumThreads, 0, stream, count, x, sums.data());
  if (blocks > 1)
    launch(add_sums_kernel, 1, kSumThreads, 0, stream, std::int64_t{blocks}, sums.data());
  double sum = 0.0;
  device.copy(&sum, sums.data(), sizeof(sum), stream);
  return sum;
}

}  // namespace longspan::model::cuda
