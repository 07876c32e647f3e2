#include "model/kernels/cuda/plugin.hpp"

#include <cstring>

#include "model/kernels/cuda/cuda_kernels.hpp"
#include "parallel/cuda/device.hpp"
#include "parallel/cuda/device_group.hpp"
#include "parallel/cuda/host_offload.hpp"
#include "parallel/cuda/pinned.hpp"
#include "parallel/error.hpp"

#if !defined(LONGSPAN_CUDA_EMULATED)
#include <cublasLt.h>
#endif

namespace longspan::model {
namespace {

class Gpu final : public GpuBackend {
 public:
  explicit Gpu(const GpuOptions& options)
      : device_(options.device),
        kernels_(device_.scratch(), options.deterministic),
        groups_(options.device, longspan::cuda::native(device_.stream()),
                {options.communication,
                 options.share_gpu,
                 options.deterministic,
                 {.deadline_seconds = options.deadline_seconds}}) {}
  Device& device() override { return device_; }
  Kernels& kernels() override { return kernels_; }
  std::string description() override {
    return kernels_.description() + "; " + groups_.description();
  }
  std::unique_ptr<ProcessGroup> make_group(const Communicator& comm) override {
    return groups_.make(comm);
  }
  std::unique_ptr<OffloadStack> make_host_offload() override {
    return longspan::cuda::make_host_offload(device_);
  }
  bool reserve(std::int64_t bytes) override { return device_.reserve(bytes); }
  std::int64_t free_bytes() override { return device_.free_bytes(); }
  GpuMemory memory() override {
    const longspan::cuda::Arena& arena = device_.arena();
    return {arena.held_bytes(),         arena.used_bytes(),
            arena.peak_bytes(),         device_.scratch_peak_bytes(),
            arena.system_allocations(), longspan::cuda::pinned_allocations};
  }

 private:
  longspan::cuda::CudaDevice device_;
  CudaKernels kernels_;
  longspan::cuda::DeviceGroups groups_;
};

class Plugin final : public GpuPlugin {
 public:
  std::string versions() const override {
    int runtime = 0;
    LONGSPAN_CUDA(cudaRuntimeGetVersion(&runtime));
    std::string text = "CUDA " + longspan::cuda::version_text(runtime);
#if defined(LONGSPAN_CUDA_EMULATED)
    return text + " (emulated)";
#else
    const std::size_t blas = cublasLtGetVersion();
    return text + fmt::format(", cuBLASLt {}.{}.{}", blas / 10000, blas / 100 % 100, blas % 100);
#endif
  }
  int gpu_count() const override {
    return longspan::cuda::gpu_count();
  }
  GpuDescription describe(int device) const override {
    const longspan::cuda::GpuFacts facts = longspan::cuda::gpu_facts(device);
    return {facts.name,  facts.major,           facts.minor,
            facts.bytes, facts.multiprocessors, facts.pci_bus};
  }
  std::unique_ptr<GpuBackend> open(const GpuOptions& options) const override {
    const GpuDescription gpu = describe(options.device);
    if (gpu.major < 8)
      fail(
          "GPU {} ({}) has compute capability {}.{}, the kernels need 8.0 (A100) or later: choose "
          "another GPU, or set run.device=cpu",
          options.device, gpu.name, gpu.major, gpu.minor);
    return std::make_unique<Gpu>(options);
  }
};

}  // namespace
}  // namespace longspan::model

extern "C" __attribute__((visibility("default"))) longspan::model::GpuPlugin* longspan_cuda_open(
    const char* interface, const char** mine) {
  *mine = LONGSPAN_GPU_INTERFACE;
  if (std::strcmp(interface, LONGSPAN_GPU_INTERFACE) != 0) return nullptr;
  static longspan::model::Plugin plugin;
  return &plugin;
}
