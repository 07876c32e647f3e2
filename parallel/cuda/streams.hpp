/// Owned streams, events and pinned memory of the CUDA runtime, for groups and copies beside the
/// compute stream.
#pragma once

#include <cuda_runtime_api.h>

#include <mutex>
#include <vector>

#include "parallel/error.hpp"
#include "parallel/handle.hpp"

namespace longspan::cuda {

/// Throws Error with the runtime's own text if `code` is not cudaSuccess. `what` names the call.
inline void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) fail("{}: {}", what, cudaGetErrorString(code));
}

using OwnedStream = Handle<cudaStream_t, nullptr, cudaStreamDestroy>;
using OwnedEvent = Handle<cudaEvent_t, nullptr, cudaEventDestroy>;

/// A stream that runs beside all others.
inline OwnedStream make_stream() {
  cudaStream_t raw = nullptr;
  check(cudaStreamCreateWithFlags(&raw, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return OwnedStream(raw);
}

/// Without `timing` an event costs less and its wait sleeps.
inline OwnedEvent make_event(bool timing = false) {
  cudaEvent_t raw = nullptr;
  check(cudaEventCreateWithFlags(
            &raw, timing ? cudaEventDefault : cudaEventDisableTiming | cudaEventBlockingSync),
        "cudaEventCreateWithFlags");
  return OwnedEvent(raw);
}

/// Page-locked memory of the host: the only kind that copies without a detour and asynchronously.
template <class T>
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::size_t count) : size_(count) {
    void* raw = nullptr;
    const cudaError_t code = cudaHostAlloc(&raw, count * sizeof(T), cudaHostAllocDefault);
    if (code != cudaSuccess)
      fail(
          "no page-locked host memory for {} bytes: {}: raise the limit (ulimit -l) or free memory",
          count * sizeof(T), cudaGetErrorString(code));
    memory_ = Memory(raw);
  }
  T* data() const { return static_cast<T*>(memory_.get()); }
  std::size_t size() const { return size_; }

 private:
  using Memory = Handle<void*, nullptr, cudaFreeHost>;
  Memory memory_{};
  std::size_t size_ = 0;
};

/// Events that are used again; safe from every thread.
class EventPool {
 public:
  explicit EventPool(bool timing = false) : timing_(timing) {}
  OwnedEvent take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return make_event(timing_);
    OwnedEvent event = std::move(free_.back());
    free_.pop_back();
    return event;
  }
  void give(OwnedEvent event) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(event));
  }

 private:
  bool timing_;
  std::mutex mutex_;
  std::vector<OwnedEvent> free_;
};

}  // namespace longspan::cuda
