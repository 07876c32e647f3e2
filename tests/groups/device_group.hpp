/// What the tests of groups on device memory share: a compute stream that is late, and vectors on
/// the device.
#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "parallel/cuda/stream.hpp"
#include "parallel/process_group.hpp"
#include "parallel/random.hpp"

namespace longspan::groups_test {

/// Values that depend on the rank.
inline std::vector<float> values_of(int rank, std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  std::uint64_t state = derive_key(static_cast<std::uint64_t>(rank), 1);
  for (float& value : values) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<float>(state >> 40) * 0x1p-22f - 2.0f;
  }
  return values;
}

inline View<float> view(std::vector<float>& v) {
  return {v.data(), static_cast<std::int64_t>(v.size())};
}

/// Floats on the device, filled and read by the compute stream alone.
class OnDevice {
 public:
  OnDevice(cuda::CudaStream& compute, std::int64_t count) : compute_(compute), size_(count) {
    LONGSPAN_CUDA(cudaMalloc(reinterpret_cast<void**>(&data_), bytes() + 4));
    LONGSPAN_CUDA(cudaMemsetAsync(data_, 0xff, bytes(), compute.native()));
  }
  /// The compute stream gets to it only after some other work.
  OnDevice(cuda::CudaStream& compute, std::vector<float> values)
      : OnDevice(compute, static_cast<std::int64_t>(values.size())) {
    host_ = std::move(values);
    LONGSPAN_CUDA(cudaLaunchHostFunc(
        compute.native(), [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(2)); },
        nullptr));
    LONGSPAN_CUDA(
        cudaMemcpyAsync(data_, host_.data(), bytes(), cudaMemcpyDefault, compute.native()));
  }
  OnDevice(OnDevice&&) = delete;
  ~OnDevice() {
    compute_.synchronize();
    (void)cudaFree(data_);
  }
  View<float> view() const { return {data_, size_}; }
  /// As the compute stream sees it now.
  std::vector<float> read() const {
    std::vector<float> values(static_cast<std::size_t>(size_));
    LONGSPAN_CUDA(
        cudaMemcpyAsync(values.data(), data_, bytes(), cudaMemcpyDefault, compute_.native()));
    compute_.synchronize();
    return values;
  }

 private:
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(float); }
  cuda::CudaStream& compute_;
  std::int64_t size_;
  float* data_ = nullptr;
  std::vector<float> host_;
};

/// The same bits (NaN too).
inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

}  // namespace longspan::groups_test
