#include "parallel/cuda/device.hpp"

#include <algorithm>
#include <cstring>

namespace longspan::cuda {
namespace {

constexpr std::size_t kStagingBytes = std::size_t{4} << 20;
/// The least that is asked of the driver at once: a cudaMalloc waits for the whole GPU.
constexpr std::size_t kLargestStep = std::size_t{1} << 30;

enum class Side { kHost, kPinned, kDevice };

Side side_of(const void* memory) {
  cudaPointerAttributes attributes = {};
  LONGSPAN_CUDA(cudaPointerGetAttributes(&attributes, memory));
  if (attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged)
    return Side::kDevice;
  return attributes.type == cudaMemoryTypeHost ? Side::kPinned : Side::kHost;
}

Arena::System system_of(int ordinal, std::int64_t board_bytes) {
  Arena::System system;
  system.allocate = [ordinal](std::size_t bytes) -> void* {
    LONGSPAN_CUDA(cudaSetDevice(ordinal));
    void* memory = nullptr;
    if (cudaMalloc(&memory, bytes) == cudaSuccess) return memory;
    (void)cudaGetLastError();
    return nullptr;
  };
  system.release = [](void* memory) { (void)cudaFree(memory); };
  system.step_bytes = std::min(kLargestStep, static_cast<std::size_t>(board_bytes) / 64);
  return system;
}

}  // namespace

int gpu_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice || count == 0) {
    (void)cudaGetLastError();
    int driver = 0, runtime = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (error == cudaErrorInsufficientDriver && driver == 0)
      fail("no GPU driver here (CUDA: {})", cudaGetErrorString(error));
    if (error == cudaErrorInsufficientDriver)
      fail("the GPU driver offers CUDA {}, this build needs {} (CUDA: {}): install a newer driver",
           version_text(driver), version_text(runtime), cudaGetErrorString(error));
    fail("no GPU here (CUDA: {})",
         cudaGetErrorString(error == cudaSuccess ? cudaErrorNoDevice : error));
  }
  check(error, "cudaGetDeviceCount(&count)", __FILE__, __LINE__);
  return count;
}

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

GpuFacts gpu_facts(int ordinal) {
  cudaDeviceProp properties;
  LONGSPAN_CUDA(cudaGetDeviceProperties(&properties, ordinal));
  char bus[32] = {};
  LONGSPAN_CUDA(cudaDeviceGetPCIBusId(bus, sizeof bus, ordinal));
  return {properties.name,
          properties.major,
          properties.minor,
          static_cast<std::int64_t>(properties.totalGlobalMem),
          properties.multiProcessorCount,
          bus};
}

CudaDevice::CudaDevice(int ordinal)
    : ordinal_(ordinal), facts_(gpu_facts(ordinal)), arena_(system_of(ordinal, facts_.bytes)) {
  use();
  stream_ = std::make_unique<CudaStream>();
  copy_stream_ = std::make_unique<CudaStream>();
  for (Staging& staging : staging_) {
    LONGSPAN_CUDA(cudaMallocHost(&staging.memory, kStagingBytes));
    staging.done.record(*stream_);
  }
}

CudaDevice::~CudaDevice() {
  (void)cudaDeviceSynchronize();
  for (Staging& staging : staging_) (void)cudaFreeHost(staging.memory);
}

void CudaDevice::use() const {
  LONGSPAN_CUDA(cudaSetDevice(ordinal_));
}

void* CudaDevice::take(std::size_t bytes) {
  void* const memory = arena_.allocate(bytes);
  if (memory == nullptr) {
    use();
    std::size_t free_bytes = 0, total_bytes = 0;
    LONGSPAN_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
    fail(
        "no memory for {} bytes on GPU {} ({}): {} bytes are in use here, {} of its {} are free: "
        "use shorter sequences, smaller micro-batches, memory.keep=block, memory.offload=host or "
        "more ranks",
        bytes, ordinal_, facts_.name, arena_.bytes_in_use(), free_bytes, total_bytes);
  }
#if defined(LONGSPAN_CUDA_EMULATED)
  // A block that is handed out again holds NaN as a fresh one does: reading it uninitialised shows.
  LONGSPAN_CUDA(cudaMemsetAsync(memory, 0xff, bytes, stream_->native()));
#endif
  return memory;
}

void* CudaDevice::allocate(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  void* const memory = take(bytes);
  arrays_.add(static_cast<std::int64_t>(bytes));
  return memory;
}

void CudaDevice::release(void* memory, std::size_t bytes) noexcept {
  if (memory == nullptr) return;
  arena_.release(memory, bytes);
  arrays_.add(-static_cast<std::int64_t>(bytes));
}

void* CudaDevice::Scratch::allocate(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  void* const memory = device_.take(bytes);
  count_.add(static_cast<std::int64_t>(bytes));
  return memory;
}

void CudaDevice::Scratch::release(void* memory, std::size_t bytes) noexcept {
  if (memory == nullptr) return;
  device_.arena_.release(memory, bytes);
  count_.add(-static_cast<std::int64_t>(bytes));
}

void CudaDevice::Count::add(std::int64_t bytes) {
  const std::int64_t now = in_use_ += bytes;
  for (std::int64_t most = peak_; now > most && !peak_.compare_exchange_weak(most, now);) {
  }
}

void CudaDevice::reset_peak() {
  arrays_.reset_peak();
  scratch_.reset_peak();
  arena_.reset_peak();
}

bool CudaDevice::reserve(std::int64_t bytes) {
  return bytes <= 0 || arena_.reserve(static_cast<std::size_t>(bytes));
}

std::int64_t CudaDevice::free_bytes() const {
  use();
  std::size_t free_bytes = 0, total_bytes = 0;
  LONGSPAN_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
  return static_cast<std::int64_t>(free_bytes);
}

void CudaDevice::copy(void* to, const void* from, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  use();
  const cudaStream_t on = cuda::native(stream);
  const Side target = side_of(to), source = side_of(from);
  if (target == Side::kDevice && source == Side::kDevice) {
    LONGSPAN_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, on));
  } else if (target == Side::kDevice && source == Side::kHost) {
    copy_in(static_cast<char*>(to), static_cast<const char*>(from), bytes, on);
  } else if (target == Side::kHost && source == Side::kDevice) {
    copy_out(static_cast<char*>(to), static_cast<const char*>(from), bytes, on);
  } else if (target != Side::kDevice && source != Side::kDevice) {
    LONGSPAN_CUDA(cudaStreamSynchronize(on));
    std::memmove(to, from, bytes);
  } else {
    LONGSPAN_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, on));
    LONGSPAN_CUDA(cudaStreamSynchronize(on));
  }
}

void CudaDevice::copy_in(char* to, const char* from, std::size_t bytes, cudaStream_t stream) {
  const std::lock_guard lock(staging_mutex_);
  for (std::size_t begin = 0, i = 0; begin < bytes; begin += kStagingBytes, i ^= 1) {
    const std::size_t part = std::min(kStagingBytes, bytes - begin);
    staging_[i].done.synchronize();
    std::memcpy(staging_[i].memory, from + begin, part);
    LONGSPAN_CUDA(
        cudaMemcpyAsync(to + begin, staging_[i].memory, part, cudaMemcpyHostToDevice, stream));
    staging_[i].done.record(stream);
  }
}

void CudaDevice::copy_out(char* to, const char* from, std::size_t bytes, cudaStream_t stream) {
  const std::lock_guard lock(staging_mutex_);
  const std::size_t parts = (bytes + kStagingBytes - 1) / kStagingBytes;
  const auto size = [&](std::size_t part) {
    return std::min(kStagingBytes, bytes - part * kStagingBytes);
  };
  // While the host takes one piece out of its buffer, the next is on its way into the other.
  for (std::size_t part = 0; part <= parts; ++part) {
    if (part < parts) {
      Staging& into = staging_[part % 2];
      into.done.synchronize();
      LONGSPAN_CUDA(cudaMemcpyAsync(into.memory, from + part * kStagingBytes, size(part),
                                    cudaMemcpyDeviceToHost, stream));
      into.done.record(stream);
    }
    if (part > 0) {
      Staging& out = staging_[(part - 1) % 2];
      out.done.synchronize();
      std::memcpy(to + (part - 1) * kStagingBytes, out.memory, size(part - 1));
    }
  }
}

void CudaDevice::copy_rows(void* to, std::size_t to_row, const void* from, std::size_t from_row,
                           std::size_t bytes, std::int64_t rows, Stream& stream) {
  if (bytes == 0 || rows <= 0) return;
  use();
  const cudaStream_t on = cuda::native(stream);
  const bool inside = side_of(to) == Side::kDevice && side_of(from) == Side::kDevice;
  LONGSPAN_CUDA(cudaMemcpy2DAsync(to, to_row, from, from_row, bytes, static_cast<std::size_t>(rows),
                                  cudaMemcpyDefault, on));
  if (!inside) LONGSPAN_CUDA(cudaStreamSynchronize(on));
}

void CudaDevice::fill_zero(void* to, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  use();
  LONGSPAN_CUDA(cudaMemsetAsync(to, 0, bytes, cuda::native(stream)));
}

}  // namespace longspan::cuda
