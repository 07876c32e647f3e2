/// A GPU as the Device of the rest of the program: its memory in an arena, copies to and from the
/// host through page-locked buffers, the compute stream and a second stream for copies beside it.
/// Read next: arena.hpp, stream.hpp.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "parallel/cuda/arena.hpp"
#include "parallel/cuda/stream.hpp"
#include "parallel/device.hpp"

namespace longspan::cuda {

/// What is known of a GPU without using it.
struct GpuFacts {
  std::string name;          ///< "NVIDIA H200"
  int major = 0, minor = 0;  ///< compute capability
  std::int64_t bytes = 0;    ///< of memory
  int multiprocessors = 0;
  std::string pci_bus;  ///< "0000:1B:00.0"
};

/// GPUs that the driver offers. Throws Error with what the driver says if there is no driver, or it
/// offers none.
int gpu_count();
GpuFacts gpu_facts(int ordinal);
/// "13.0" of CUDA's 13000.
std::string version_text(int version);

class CudaDevice final : public Device {
 public:
  /// Throws Error if the GPU cannot be used: it says what the driver says.
  explicit CudaDevice(int ordinal);
  ~CudaDevice() override;

  std::string name() const override { return facts_.name; }
  const GpuFacts& facts() const { return facts_; }
  int ordinal() const { return ordinal_; }

  /// Aligned to 256 bytes. A block may be handed out again as soon as it is given back: it must be
  /// used on stream(), or by others that stream() waits for.
  void* allocate(std::size_t bytes) override;
  void release(void* memory, std::size_t bytes) noexcept override;
  /// Asks the driver for so much at once, to be handed out by allocate(). Without effect if the GPU
  /// has not so much left.
  void reserve(std::int64_t bytes);

  bool host_accessible() const override { return false; }
  /// Safe from every thread. To and from the host in pieces through two page-locked buffers, unless
  /// the host's memory is page-locked itself.
  void copy(void* to, const void* from, std::size_t bytes, Stream& stream) override;
  void copy_rows(void* to, std::size_t to_row, const void* from, std::size_t from_row,
                 std::size_t bytes, std::int64_t rows, Stream& stream) override;
  void fill_zero(void* to, std::size_t bytes, Stream& stream) override;
  Stream& stream() override { return *stream_; }
  Stream& copy_stream() { return *copy_stream_; }

  std::int64_t bytes_in_use() const override { return arena_.bytes_in_use(); }
  std::int64_t peak_bytes() const override { return arena_.peak_bytes(); }
  void reset_peak() override { arena_.reset_peak(); }
  std::int64_t held_bytes() const { return arena_.held_bytes(); }
  std::int64_t system_allocations() const { return arena_.system_allocations(); }

 private:
  /// A page-locked buffer and the end of what it was last used for.
  struct Staging {
    void* memory = nullptr;
    Event done;
  };
  void copy_in(char* to, const char* from, std::size_t bytes, cudaStream_t stream);
  void copy_out(char* to, const char* from, std::size_t bytes, cudaStream_t stream);
  void use() const;  ///< this thread's CUDA calls are for this GPU

  int ordinal_;
  GpuFacts facts_;
  Arena arena_;
  std::unique_ptr<CudaStream> stream_, copy_stream_;
  std::mutex staging_mutex_;
  Staging staging_[2];
};

}  // namespace longspan::cuda
