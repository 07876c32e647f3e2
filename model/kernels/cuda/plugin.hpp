/// The door of the GPU plug-in, liblongspan_cuda.so: what a program that has opened it can ask for.
/// No CUDA header is needed here. Read next: launcher/gpu.hpp, which opens it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/kernels/kernels.hpp"
#include "parallel/communicator.hpp"
#include "parallel/offload_stack.hpp"
#include "parallel/process_group.hpp"

namespace longspan::model {

struct GpuDescription {
  std::string name;          ///< "NVIDIA H200"
  int major = 0, minor = 0;  ///< compute capability
  std::int64_t bytes = 0;    ///< of memory
  int multiprocessors = 0;
  std::string pci_bus;  ///< "0000:1B:00.0"
};

struct GpuOptions {
  int device = 0;                      ///< ordinal
  bool deterministic = false;          ///< the same bits in every run, also where that costs speed
  std::string communication = "auto";  ///< auto | nccl | staged
  bool share_gpu = false;              ///< several ranks use this GPU
  double deadline_seconds = 0;  ///< after which a collective between GPUs is given up; 0 = never
};

/// What this process has of a GPU's memory.
struct GpuMemory {
  std::int64_t held_bytes = 0;  ///< got from the driver
  std::int64_t used_bytes = 0;  ///< of these, up to the furthest block: with alignment and gaps
  std::int64_t peak_bytes = 0;  ///< arrays and what operations need while they run
  std::int64_t scratch_peak_bytes = 0;  ///< the latter alone
  std::int64_t allocations = 0;         ///< how often the driver was asked
  std::int64_t pinned_allocations = 0;  ///< likewise for page-locked memory of the host
};

/// A GPU in use by this process.
class GpuBackend {
 public:
  virtual ~GpuBackend() = default;
  virtual Device& device() = 0;
  virtual Kernels& kernels() = 0;
  Backend backend() { return {device(), kernels(), device().stream()}; }
  /// Which kernels and libraries serve here, one line.
  virtual std::string description() = 0;
  /// Collectives on this device's memory over a duplicate of `comm`. Collective.
  virtual std::unique_ptr<ProcessGroup> make_group(const Communicator& comm) = 0;
  /// Where buffers of this device wait in the host's page-locked memory (memory.offload=host).
  virtual std::unique_ptr<OffloadStack> make_host_offload() = 0;
  /// Gets so much memory from the driver at once. False: the GPU has not so much left.
  virtual bool reserve(std::int64_t bytes) = 0;
  /// Of the GPU, at this moment; what other processes hold is not free.
  virtual std::int64_t free_bytes() = 0;
  virtual GpuMemory memory() = 0;  ///< peaks since device().reset_peak()
};

class GpuPlugin {
 public:
  virtual ~GpuPlugin() = default;
  /// "CUDA 13.0, cuBLASLt 13.1.0, NCCL 2.28.9": what it runs with.
  virtual std::string versions() const = 0;
  /// Throws Error with what the driver says if there is no driver, or no GPU.
  virtual int gpu_count() const = 0;
  virtual GpuDescription describe(int device) const = 0;
  /// Throws Error if the GPU is older than compute capability 8.0, or cannot be used.
  virtual std::unique_ptr<GpuBackend> open(const GpuOptions& options) const = 0;
};

/// Of the plug-in's one entry, `longspan_cuda_open`: null, with its own in *mine, unless
/// `interface` is the digest of the headers that the plug-in was built with
/// (LONGSPAN_GPU_INTERFACE): classes of another build would be laid out in another way.
using OpenGpuPlugin = GpuPlugin*(const char* interface, const char** mine);
inline constexpr const char* kOpenGpuPlugin = "longspan_cuda_open";

}  // namespace longspan::model
