// The part of CUDA's runtime header that the project's kernels and device code use, for a host
// compiler: device code runs in emulator.hpp's fibers, host calls work on its device memory and
// have finished when they return.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "cuda_host_api.h"
#include "cuda_vector_types.h"
#include "emulator.hpp"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define threadIdx (::cuda_emulator::position.thread)
#define blockIdx (::cuda_emulator::position.block)
#define blockDim (::cuda_emulator::position.block_size)
#define gridDim (::cuda_emulator::position.grid_size)
inline constexpr int warpSize = 32;

// Barriers, votes and shuffles.
inline void __syncthreads() {
  ::cuda_emulator::barrier(0);
}
inline int __syncthreads_count(int p) {
  return ::cuda_emulator::barrier(p != 0);
}
inline int __syncthreads_or(int p) {
  return ::cuda_emulator::barrier(p != 0) > 0;
}
inline int __syncthreads_and(int p) {
  return ::cuda_emulator::barrier(p == 0) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace cuda_emulator {
struct Vote {
  bool mine;
  unsigned all;
};
inline unsigned ballot(unsigned mask, const char* name, bool predicate) {
  Vote vote{predicate, 0};
  warp<Vote>(mask, name, vote, [](Vote** lanes, unsigned) {
    unsigned all = 0;
    for (unsigned i = 0; i < 32; ++i)
      if (lanes[i] != nullptr && lanes[i]->mine) all |= 1u << i;
    for (unsigned i = 0; i < 32; ++i)
      if (lanes[i] != nullptr) lanes[i]->all = all;
  });
  return vote.all;
}

template <class T>
struct Shuffle {
  T value;
  int source;
  T result;
};
/// Every lane gets the value of lane `source`; reading a lane outside of the mask is undefined on a
/// GPU and gives 0xff bytes here.
template <class T>
T shuffle(unsigned mask, const char* name, T value, int source) {
  Shuffle<T> mine{value, source, value};
  warp<Shuffle<T>>(mask, name, mine, [](Shuffle<T>** lanes, unsigned) {
    for (int i = 0; i < 32; ++i) {
      if (lanes[i] == nullptr) continue;
      if (lanes[lanes[i]->source] != nullptr)
        lanes[i]->result = lanes[lanes[i]->source]->value;
      else
        std::memset(static_cast<void*>(&lanes[i]->result), 0xff, sizeof(T));
    }
  });
  return mine.result;
}

template <class T>
struct Reduction {
  T value;
};
template <class T>
T reduce(unsigned mask, const char* name, T value, void (*combine)(Reduction<T>**, unsigned)) {
  Reduction<T> mine{value};
  warp<Reduction<T>>(mask, name, mine, combine);
  return mine.value;
}
template <class T, class Op>
void reduce_with(Reduction<T>** lanes, Op&& op) {
  bool any = false;
  T all{};
  for (int i = 0; i < 32; ++i)
    if (lanes[i] != nullptr) {
      all = any ? op(all, lanes[i]->value) : lanes[i]->value;
      any = true;
    }
  for (int i = 0; i < 32; ++i)
    if (lanes[i] != nullptr) lanes[i]->value = all;
}
}  // namespace cuda_emulator

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  ::cuda_emulator::ballot(mask, "__syncwarp", false);
}
inline unsigned __ballot_sync(unsigned mask, int p) {
  return ::cuda_emulator::ballot(mask, "__ballot_sync", p != 0);
}
inline int __any_sync(unsigned mask, int p) {
  return ::cuda_emulator::ballot(mask, "__any_sync", p != 0) != 0;
}
inline int __all_sync(unsigned mask, int p) {
  return ::cuda_emulator::ballot(mask, "__all_sync", p == 0) == 0;
}
/// Lanes of the mask that are here: all of them, threads never diverge for longer than a call.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = static_cast<int>(::cuda_emulator::lane());
  return ::cuda_emulator::shuffle(mask, "__shfl_sync", value,
                                  (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = static_cast<int>(::cuda_emulator::lane());
  const int source = lane - static_cast<int>(delta);
  return ::cuda_emulator::shuffle(mask, "__shfl_up_sync", value,
                                  source < (lane & ~(width - 1)) ? lane : source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = static_cast<int>(::cuda_emulator::lane());
  const int source = lane + static_cast<int>(delta);
  return ::cuda_emulator::shuffle(mask, "__shfl_down_sync", value,
                                  source > (lane | (width - 1)) ? lane : source);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int lane = static_cast<int>(::cuda_emulator::lane());
  const int source = lane ^ lanes;
  return ::cuda_emulator::shuffle(mask, "__shfl_xor_sync", value,
                                  source > (lane | (width - 1)) ? lane : source);
}
template <class T>
T __reduce_add_sync(unsigned mask, T value) {
  return ::cuda_emulator::reduce<T>(
      mask, "__reduce_add_sync", value, [](::cuda_emulator::Reduction<T>** lanes, unsigned) {
        ::cuda_emulator::reduce_with(lanes, [](T a, T b) { return a + b; });
      });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value) {
  return ::cuda_emulator::reduce<T>(
      mask, "__reduce_max_sync", value, [](::cuda_emulator::Reduction<T>** lanes, unsigned) {
        ::cuda_emulator::reduce_with(lanes, [](T a, T b) { return a > b ? a : b; });
      });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value) {
  return ::cuda_emulator::reduce<T>(
      mask, "__reduce_min_sync", value, [](::cuda_emulator::Reduction<T>** lanes, unsigned) {
        ::cuda_emulator::reduce_with(lanes, [](T a, T b) { return a < b ? a : b; });
      });
}

// Arithmetic. The fast forms are exact here: tests on the emulator do not see their rounding.
inline float __expf(float x) {
  return std::exp(x);
}
inline float __exp10f(float x) {
  return std::pow(10.0f, x);
}
inline float __logf(float x) {
  return std::log(x);
}
inline float __log2f(float x) {
  return std::log2(x);
}
inline float __sinf(float x) {
  return std::sin(x);
}
inline float __cosf(float x) {
  return std::cos(x);
}
inline float __powf(float x, float y) {
  return std::pow(x, y);
}
inline float __fdividef(float x, float y) {
  return x / y;
}
inline float __frcp_rn(float x) {
  return 1.0f / x;
}
inline float __fsqrt_rn(float x) {
  return std::sqrt(x);
}
inline float __frsqrt_rn(float x) {
  return 1.0f / std::sqrt(x);
}
inline float __fadd_rn(float x, float y) {
  return x + y;
}
inline float __fsub_rn(float x, float y) {
  return x - y;
}
inline float __fmul_rn(float x, float y) {
  return x * y;
}
inline float __fdiv_rn(float x, float y) {
  return x / y;
}
inline float __fmaf_rn(float x, float y, float z) {
  return std::fma(x, y, z);
}
inline double __dadd_rn(double x, double y) {
  return x + y;
}
inline double __dmul_rn(double x, double y) {
  return x * y;
}
inline double __fma_rn(double x, double y, double z) {
  return std::fma(x, y, z);
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}
inline float __saturatef(float x) {
  return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
}
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(std::uint64_t{x} * y >> 32);
}
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline int __float_as_int(float x) {
  return static_cast<int>(__float_as_uint(x));
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float __int_as_float(int bits) {
  return __uint_as_float(static_cast<unsigned>(bits));
}
inline double __longlong_as_double(long long bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float __uint2float_rn(unsigned x) {
  return static_cast<float>(x);
}
inline float __int2float_rn(int x) {
  return static_cast<float>(x);
}
inline float __double2float_rn(double x) {
  return static_cast<float>(x);
}
template <class T>
T max(T x, T y) {
  return x > y ? x : y;
}
template <class T>
T min(T x, T y) {
  return x < y ? x : y;
}

// Memory.
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}
template <class T>
void __stcg(T* p, T value) {
  *p = value;
}
inline std::size_t __cvta_generic_to_shared(const void* p) {
  return reinterpret_cast<std::size_t>(p);
}

// Integers only: a sum of floats by atomics would depend on the order of the threads.
inline int atomicAdd(int* p, int x) {
  return std::exchange(*p, *p + x);
}
inline unsigned atomicAdd(unsigned* p, unsigned x) {
  return std::exchange(*p, *p + x);
}
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long x) {
  return std::exchange(*p, *p + x);
}
inline int atomicMax(int* p, int x) {
  return std::exchange(*p, *p > x ? *p : x);
}
inline int atomicMin(int* p, int x) {
  return std::exchange(*p, *p < x ? *p : x);
}
inline unsigned atomicMax(unsigned* p, unsigned x) {
  return std::exchange(*p, *p > x ? *p : x);
}
inline int atomicExch(int* p, int x) {
  return std::exchange(*p, x);
}
inline unsigned atomicExch(unsigned* p, unsigned x) {
  return std::exchange(*p, x);
}
inline int atomicOr(int* p, int x) {
  return std::exchange(*p, *p | x);
}
inline unsigned atomicOr(unsigned* p, unsigned x) {
  return std::exchange(*p, *p | x);
}
inline int atomicCAS(int* p, int compare, int x) {
  return std::exchange(*p, *p == compare ? x : *p);
}
