/// Runs CUDA kernels on the host, for tests on machines without a GPU: blocks one after the other,
/// the threads of a block as fibers. A block's threads run in rising order on even blocks and in
/// falling order on odd ones, so that a missing __syncthreads() shows. Read next: cuda_runtime.h,
/// which kernels include in the place of CUDA's.
///
/// What is checked: __syncthreads() that not every thread of the block reaches, warp operations
/// that not every lane of the mask reaches, or reaches at another operation, and access outside of
/// device memory. Host code that touches device memory is killed with a message (unless
/// LONGSPAN_CUDA_EMULATOR_PROTECT=off): the memory is mapped without access while neither a kernel
/// nor a copy runs. Fresh device memory holds NaN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace cuda_emulator {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

/// Where the fiber that runs now stands.
struct Position {
  Index thread, block, block_size, grid_size;
};
extern Position position;
/// Dynamic shared memory of the block that runs now, filled with NaN when the block began.
extern void* dynamic_shared;

unsigned lane();  ///< 0..31, thread number in the block modulo 32

/// __syncthreads(): `sum` of `predicate` over the block (for __syncthreads_count/_or/_and).
int barrier(int predicate);

/// One operation of the lanes in `mask`, which all call it with the same `name`. `mine` is anything
/// on the caller's stack; the lane that comes last calls combine(lanes, mask, context), where
/// lanes[i] is what lane i passed (null outside of the mask): it reads what they brought and writes
/// what they take along.
void warp_operation(unsigned mask, const char* name, void* mine,
                    void (*combine)(void** lanes, unsigned mask));

/// The same with types: Lane is a struct with the lane's operands and its result.
template <class Lane>
void warp(unsigned mask, const char* name, Lane& mine,
          void (*combine)(Lane** lanes, unsigned mask)) {
  struct Call {
    Lane* lane;
    void (*combine)(Lane**, unsigned);
  } call{&mine, combine};
  warp_operation(mask, name, &call, [](void** lanes, unsigned among) {
    Lane* typed[32] = {};
    void (*function)(Lane**, unsigned) = nullptr;
    for (int i = 0; i < 32; ++i) {
      if (lanes[i] == nullptr) continue;
      typed[i] = static_cast<Call*>(lanes[i])->lane;
      function = static_cast<Call*>(lanes[i])->combine;
    }
    function(typed, among);
  });
}

/// Runs `body` once for every thread of the grid. False: it went wrong, failure() says how.
bool run_grid(Index grid, Index block, std::size_t shared_bytes, void (*body)(void* context),
              void* context);
const std::string& failure();
void set_failure(const std::string& message);

/// Device memory may be touched while one of these lives, by any thread: kernels and copies hold
/// one, and so does what stands in for a library (a matrix product on the host).
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

/// null: no device memory left. Aligned to 256 bytes, filled with 0xff bytes (NaN).
void* device_allocate(std::size_t bytes);
bool device_release(void* memory);  ///< false: not a block of device memory
bool is_device_memory(const void* memory);
std::size_t device_bytes_total();
std::size_t device_bytes_free();

}  // namespace cuda_emulator
