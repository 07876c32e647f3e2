/// The device behind which all memory lives: the CPU is built in, others come from a plug-in. A
/// Stream orders work on a device; on the CPU every call has finished when it returns. Buffers are
/// counted, so that the log can state peak bytes. Read next: model/kernels/kernels.hpp, the
/// operations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "parallel/array.hpp"

namespace longspan {

class Stream {
 public:
  virtual ~Stream() = default;
  /// Returns when everything submitted so far has finished. Throws Error if any of it failed.
  virtual void synchronize() = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  ///< "cpu", or the plug-in's description

  /// Uninitialised memory, aligned to 64 bytes. Freed memory is kept and handed out again: a
  /// training step after the first allocates nothing from the system. Throws Error with the sizes
  /// when there is none left.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* memory, std::size_t bytes) noexcept = 0;

  /// Whether the host may read and write this memory itself, once stream() has come so far. If not,
  /// only copy() and fill_zero() reach it (host_copy.hpp).
  virtual bool host_accessible() const { return false; }

  /// Either side may be this device's memory or the host's. Ordered on the stream; where a side is
  /// the host's, it has been read or is filled on return.
  virtual void copy(void* to, const void* from, std::size_t bytes, Stream& stream) = 0;
  /// The same of `rows` runs of `bytes`, whose beginnings are `to_row` and `from_row` bytes apart.
  virtual void copy_rows(void* to, std::size_t to_row, const void* from, std::size_t from_row,
                         std::size_t bytes, std::int64_t rows, Stream& stream) {
    for (std::int64_t row = 0; bytes > 0 && row < rows; ++row)
      copy(static_cast<std::byte*>(to) + static_cast<std::size_t>(row) * to_row,
           static_cast<const std::byte*>(from) + static_cast<std::size_t>(row) * from_row, bytes,
           stream);
  }
  virtual void fill_zero(void* to, std::size_t bytes, Stream& stream) = 0;
  virtual Stream& stream() = 0;  ///< the compute stream
  /// For copies beside the compute stream, of memory that it does not write meanwhile.
  virtual Stream& copy_stream() { return stream(); }

  virtual std::int64_t bytes_in_use() const = 0;
  virtual std::int64_t peak_bytes() const = 0;  ///< largest bytes_in_use() since the last reset
  virtual void reset_peak() = 0;
};

/// The host's memory; one per process, thread safe.
Device& cpu_device();

/// Owns `count` elements on a device; not initialised. Moves, never copies.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device& device, std::int64_t count)
      : device_(&device),
        data_(static_cast<T*>(device.allocate(static_cast<std::size_t>(count) * sizeof(T)))),
        rows_(1),
        cols_(count) {}
  Buffer(Device& device, std::int64_t rows, std::int64_t cols) : Buffer(device, rows * cols) {
    rows_ = rows;
    cols_ = cols;
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer moved(std::move(other));
    swap(moved);
    return *this;
  }
  ~Buffer() { clear(); }

  /// Gives the memory back now.
  void clear() {
    if (data_ != nullptr) device_->release(data_, static_cast<std::size_t>(size()) * sizeof(T));
    data_ = nullptr;
    rows_ = cols_ = 0;
  }

  T* data() const { return data_; }
  std::int64_t size() const { return rows_ * cols_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  bool empty() const { return data_ == nullptr; }
  T& operator[](std::int64_t i) const { return data_[i]; }
  View<T> view() const { return View<T>(data_, rows_, cols_); }
  operator View<T>() const { return view(); }
  operator View<const T>() const { return View<const T>(data_, rows_, cols_); }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
  }
  Device* device_ = nullptr;
  T* data_ = nullptr;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
};

}  // namespace longspan
