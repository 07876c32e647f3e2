/// CUDA streams and events as the rest of the program sees them. Read next: device.hpp beside this.
#pragma once

#include "parallel/cuda/check.hpp"
#include "parallel/device.hpp"

namespace longspan::cuda {

/// A CUDA stream of its own, not ordered with the legacy default stream.
class CudaStream final : public Stream {
 public:
  CudaStream();
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  void synchronize() override;
  cudaStream_t native() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// The CUDA stream behind `stream`, which is a CudaStream.
inline cudaStream_t native(Stream& stream) {
  return static_cast<CudaStream&>(stream).native();
}

/// A mark in a stream. Without `timing` it is cheaper and seconds_until() is not allowed.
class Event {
 public:
  explicit Event(bool timing = false);
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  void record(cudaStream_t stream);
  void record(Stream& stream) { record(cuda::native(stream)); }
  /// `stream` goes on only after the mark.
  void make_wait(cudaStream_t stream) const;
  void make_wait(Stream& stream) const { make_wait(cuda::native(stream)); }
  bool reached() const;      ///< does not wait
  void synchronize() const;  ///< the host waits
  /// Seconds on the device between this mark and a later one; both have been reached.
  double seconds_until(const Event& later) const;
  cudaEvent_t native() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace longspan::cuda
