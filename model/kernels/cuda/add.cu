#include <algorithm>

#include "model/kernels/cuda/cuda_kernels.hpp"
#include "parallel/cuda/launch.hpp"

namespace longspan::model {
namespace {

constexpr int kThreads = 256;

__global__ void add_kernel(std::int64_t count, const float* __restrict__ x, float* __restrict__ y) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += stride)
    y[i] += x[i];
}

}  // namespace

void CudaKernels::add(std::int64_t count, const float* x, float* y, Stream& stream) {
  const std::int64_t blocks = std::min<std::int64_t>((count + kThreads - 1) / kThreads, 4096);
  cuda::launch(add_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, count, x,
               y);
}

}  // namespace longspan::model
