// A kernel of the plug-in, run by the emulator that stands in for a GPU.
#include <gtest/gtest.h>

#include <vector>

#include "model/kernels/cuda/cuda_kernels.hpp"
#include "parallel/cuda/launch.hpp"

namespace longspan {
namespace {

TEST(Emulator, AddsVectors) {
  const std::int64_t n = 1000;
  std::vector<float> x(n), y(n), sum(n);
  for (std::int64_t i = 0; i < n; ++i) {
    x[i] = static_cast<float>(i);
    y[i] = 0.5f;
  }
  float *dx = nullptr, *dy = nullptr;
  LONGSPAN_CUDA(cudaMalloc(reinterpret_cast<void**>(&dx), n * 4));
  LONGSPAN_CUDA(cudaMalloc(reinterpret_cast<void**>(&dy), n * 4));
  LONGSPAN_CUDA(cudaMemcpy(dx, x.data(), n * 4, cudaMemcpyHostToDevice));
  LONGSPAN_CUDA(cudaMemcpy(dy, y.data(), n * 4, cudaMemcpyHostToDevice));
  cuda::CudaStream stream;
  model::CudaKernels kernels(cpu_device());
  kernels.add(n, dx, dy, stream);
  LONGSPAN_CUDA(cudaMemcpy(sum.data(), dy, n * 4, cudaMemcpyDeviceToHost));
  for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(sum[i], static_cast<float>(i) + 0.5f);
  LONGSPAN_CUDA(cudaFree(dx));
  LONGSPAN_CUDA(cudaFree(dy));
}

}  // namespace
}  // namespace longspan
