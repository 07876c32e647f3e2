/// Kernel launches, the same text for nvcc and for the emulator of tests/support/cuda_emulator/
/// (LONGSPAN_CUDA_EMULATED): kernels are never launched with <<<>>>. Read next: stream.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "parallel/cuda/check.hpp"
#include "parallel/cuda/stream.hpp"

namespace longspan::cuda {

/// More than this needs the kernel's leave, which launch() gets.
inline constexpr std::size_t kSharedWithoutLeave = 48 * 1024;

/// Runs `kernel` on a grid of blocks, behind what `stream` has been given before. shared_bytes:
/// dynamic shared memory, up to 227 KiB on Hopper and 163 KiB on A100. Throws Error if it cannot be
/// launched; what goes wrong while it runs is thrown by a later call on the device. An empty grid
/// is nothing to do.
template <class... Parameters, class... Args>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            cudaStream_t stream, Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#if defined(LONGSPAN_CUDA_EMULATED)
  (void)stream;
  auto call = [&] { kernel(static_cast<Parameters>(args)...); };
  using Call = decltype(call);
  if (!::cuda_emulator::run_grid(
          {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes,
          [](void* context) { (*static_cast<Call*>(context))(); }, &call))
    cudaEmulatorSetError(cudaErrorLaunchFailure);
  LONGSPAN_CUDA(cudaGetLastError());
#else
  if (shared_bytes > kSharedWithoutLeave)
    LONGSPAN_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shared_bytes)));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  LONGSPAN_CUDA(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...));
#endif
}

/// Bytes of dynamic shared memory that a block may have on the current GPU.
inline std::int64_t largest_dynamic_shared() {
  int device = 0, bytes = 0;
  LONGSPAN_CUDA(cudaGetDevice(&device));
  LONGSPAN_CUDA(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

template <class... Parameters, class... Args>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            Stream& stream, Args&&... args) {
  launch(kernel, grid, block, shared_bytes, native(stream), args...);
}

#if defined(LONGSPAN_CUDA_EMULATED)
/// The block's dynamic shared memory, aligned to 128 bytes.
template <class T>
T* dynamic_shared() {
  return static_cast<T*>(::cuda_emulator::dynamic_shared);
}
#elif defined(__CUDACC__)
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char longspan_dynamic_shared[];
  return reinterpret_cast<T*>(longspan_dynamic_shared);
}
#endif

}  // namespace longspan::cuda
