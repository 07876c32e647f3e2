/// A GPU as the Device of the rest of the program: its memory in an arena, copies to and from the
/// host through page-locked buffers, the compute stream and a second stream for copies beside it.
/// Read next: arena.hpp, stream.hpp.
#pragma once

#include <atomic>
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
  /// Asks the driver for so much at once, to be handed out by allocate(). False: the GPU has not so
  /// much left.
  bool reserve(std::int64_t bytes);
  /// What nobody uses of the GPU's memory; other processes' memory counts as used.
  std::int64_t free_bytes() const;
  /// This device, for what operations need while they run: its memory is counted apart.
  Device& scratch() { return scratch_; }
  std::int64_t scratch_peak_bytes() const { return scratch_.peak_bytes(); }

  bool host_accessible() const override { return false; }
  /// Safe from every thread. To and from the host in pieces through two page-locked buffers, unless
  /// the host's memory is page-locked itself.
  void copy(void* to, const void* from, std::size_t bytes, Stream& stream) override;
  void copy_rows(void* to, std::size_t to_row, const void* from, std::size_t from_row,
                 std::size_t bytes, std::int64_t rows, Stream& stream) override;
  void fill_zero(void* to, std::size_t bytes, Stream& stream) override;
  Stream& stream() override { return *stream_; }
  Stream& copy_stream() override { return *copy_stream_; }

  /// Without scratch().
  std::int64_t bytes_in_use() const override { return arrays_.in_use(); }
  std::int64_t peak_bytes() const override { return arrays_.peak(); }
  /// Of the scratch memory and the arena, too.
  void reset_peak() override;
  const Arena& arena() const { return arena_; }
  std::int64_t held_bytes() const { return arena_.held_bytes(); }
  std::int64_t system_allocations() const { return arena_.system_allocations(); }

 private:
  /// A page-locked buffer and the end of what it was last used for.
  struct Staging {
    void* memory = nullptr;
    Event done;
  };
  /// Safe from every thread.
  class Count {
   public:
    void add(std::int64_t bytes);
    std::int64_t in_use() const { return in_use_; }
    std::int64_t peak() const { return peak_; }
    void reset_peak() { peak_ = in_use_.load(); }

   private:
    std::atomic<std::int64_t> in_use_ = 0, peak_ = 0;
  };
  class Scratch final : public Device {
   public:
    explicit Scratch(CudaDevice& device) : device_(device) {}
    std::string name() const override { return device_.name(); }
    void* allocate(std::size_t bytes) override;
    void release(void* memory, std::size_t bytes) noexcept override;
    void copy(void* to, const void* from, std::size_t bytes, Stream& stream) override {
      device_.copy(to, from, bytes, stream);
    }
    void copy_rows(void* to, std::size_t to_row, const void* from, std::size_t from_row,
                   std::size_t bytes, std::int64_t rows, Stream& stream) override {
      device_.copy_rows(to, to_row, from, from_row, bytes, rows, stream);
    }
    void fill_zero(void* to, std::size_t bytes, Stream& stream) override {
      device_.fill_zero(to, bytes, stream);
    }
    Stream& stream() override { return device_.stream(); }
    Stream& copy_stream() override { return device_.copy_stream(); }
    std::int64_t bytes_in_use() const override { return count_.in_use(); }
    std::int64_t peak_bytes() const override { return count_.peak(); }
    void reset_peak() override { count_.reset_peak(); }

   private:
    CudaDevice& device_;
    Count count_;
  };
  void* take(std::size_t bytes);
  void copy_in(char* to, const char* from, std::size_t bytes, cudaStream_t stream);
  void copy_out(char* to, const char* from, std::size_t bytes, cudaStream_t stream);
  void use() const;  ///< this thread's CUDA calls are for this GPU

  int ordinal_;
  GpuFacts facts_;
  Arena arena_;
  Count arrays_;
  Scratch scratch_{*this};
  std::unique_ptr<CudaStream> stream_, copy_stream_;
  std::mutex staging_mutex_;
  Staging staging_[2];
};

}  // namespace longspan::cuda
