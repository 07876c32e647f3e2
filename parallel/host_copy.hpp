/// Between memory of the host and memory of a device, for code that computes numbers on the host or
/// looks at them there. Where the host can reach the device's memory itself (Device::
/// host_accessible, the CPU) nothing is copied: the caller works in place. Read next: device.hpp.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "parallel/array.hpp"
#include "parallel/device.hpp"

namespace longspan {

/// Numbers that were made on the host, where kernels read them. On the CPU that is the memory they
/// were given in. Moves, never copies.
template <class T>
class Uploaded {
 public:
  Uploaded() = default;
  /// Takes the numbers over.
  Uploaded(Device& device, Stream& stream, std::vector<T> numbers)
      : Uploaded(device, stream,
                 View<const T>(numbers.data(), static_cast<std::int64_t>(numbers.size()))) {
    if (!device.host_accessible()) return;
    numbers_ = std::move(numbers);
    data_ = numbers_.data();
  }
  /// The numbers stay with the caller, as they are and for as long as this is used.
  Uploaded(Device& device, Stream& stream, View<const T> numbers) : size_(numbers.size()) {
    if (device.host_accessible()) {
      data_ = numbers.data();
      return;
    }
    copy_ = Buffer<T>(device, numbers.size());
    device.copy(copy_.data(), numbers.data(), static_cast<std::size_t>(size_) * sizeof(T), stream);
    data_ = copy_.data();
  }
  Uploaded(Uploaded&&) noexcept = default;
  Uploaded& operator=(Uploaded&&) noexcept = default;

  const T* data() const { return data_; }
  std::int64_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

 private:
  std::vector<T> numbers_;
  Buffer<T> copy_;
  const T* data_ = nullptr;
  std::int64_t size_ = 0;
};

/// Calls fill(View<T>) with memory of the host of the shape of `to`, which then has what was put
/// there. `fill` writes all of it.
template <class T, class Fill>
void write_from_host(Device& device, Stream& stream, View<T> to, Fill&& fill) {
  if (device.host_accessible()) {
    stream.synchronize();
    return fill(to);
  }
  std::vector<T> numbers(static_cast<std::size_t>(to.size()));
  fill(View<T>(numbers.data(), to.rows(), to.cols()));
  device.copy(to.data(), numbers.data(), numbers.size() * sizeof(T), stream);
}

/// Whether the block can be read and written where it lies.
inline bool on_host(const ShardedArray& array) {
  return array.device == nullptr || array.device->host_accessible();
}

/// What `from` holds once the stream has come so far, where the host can read it: `from` itself on
/// the CPU, and then valid as long as that.
template <class T>
class OnHost {
 public:
  OnHost(Device& device, Stream& stream, View<const T> from) : view_(from) {
    if (device.host_accessible()) {
      stream.synchronize();
      return;
    }
    numbers_.resize(static_cast<std::size_t>(from.size()));
    device.copy(numbers_.data(), from.data(), numbers_.size() * sizeof(T), stream);
    view_ = View<const T>(numbers_.data(), from.rows(), from.cols());
  }
  OnHost(const OnHost&) = delete;
  OnHost& operator=(const OnHost&) = delete;
  View<const T> view() const { return view_; }
  const T& operator[](std::int64_t i) const { return view_[i]; }

 private:
  std::vector<T> numbers_;
  View<const T> view_;
};

}  // namespace longspan
