/// Page-locked memory of the host: the only kind that the GPU copies from and to without a detour,
/// and asynchronously.
#pragma once

#include <atomic>
#include <cstdint>

#include "parallel/cuda/check.hpp"
#include "parallel/handle.hpp"

namespace longspan::cuda {

/// How often this process has asked the driver for page-locked memory.
inline std::atomic<std::int64_t> pinned_allocations = 0;

class PinnedMemory {
 public:
  PinnedMemory() = default;
  /// Throws Error with the size if there is none.
  explicit PinnedMemory(std::size_t bytes) : bytes_(bytes) {
    ++pinned_allocations;
    void* raw = nullptr;
    const cudaError_t code = cudaHostAlloc(&raw, bytes, cudaHostAllocDefault);
    if (code != cudaSuccess) {
      (void)cudaGetLastError();
      fail(
          "no page-locked host memory for {} bytes: {}: free some, or raise the limit of locked "
          "memory (ulimit -l)",
          bytes, cudaGetErrorString(code));
    }
    memory_ = Memory(raw);
  }
  void* data() const { return memory_.get(); }
  std::size_t bytes() const { return bytes_; }

 private:
  using Memory = Handle<void*, nullptr, cudaFreeHost>;
  Memory memory_{};
  std::size_t bytes_ = 0;
};

}  // namespace longspan::cuda
