#include "parallel/cuda/stream.hpp"

#include <utility>

namespace longspan::cuda {

CudaStream::CudaStream() {
  LONGSPAN_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}
CudaStream::~CudaStream() {
  (void)cudaStreamDestroy(stream_);
}
void CudaStream::synchronize() {
  LONGSPAN_CUDA(cudaStreamSynchronize(stream_));
}

Event::Event(bool timing) {
  LONGSPAN_CUDA(
      cudaEventCreateWithFlags(&event_, timing ? cudaEventDefault : cudaEventDisableTiming));
}
Event::~Event() {
  if (event_ != nullptr) (void)cudaEventDestroy(event_);
}
Event::Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
Event& Event::operator=(Event&& other) noexcept {
  std::swap(event_, other.event_);
  return *this;
}
void Event::record(cudaStream_t stream) {
  LONGSPAN_CUDA(cudaEventRecord(event_, stream));
}
void Event::make_wait(cudaStream_t stream) const {
  LONGSPAN_CUDA(cudaStreamWaitEvent(stream, event_, 0));
}
bool Event::reached() const {
  const cudaError_t error = cudaEventQuery(event_);
  if (error == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return false;
  }
  check(error, "cudaEventQuery(event_)", __FILE__, __LINE__);
  return true;
}
void Event::synchronize() const {
  LONGSPAN_CUDA(cudaEventSynchronize(event_));
}
double Event::seconds_until(const Event& later) const {
  float milliseconds = 0.0f;
  LONGSPAN_CUDA(cudaEventElapsedTime(&milliseconds, event_, later.event_));
  return static_cast<double>(milliseconds) * 1e-3;
}

}  // namespace longspan::cuda
