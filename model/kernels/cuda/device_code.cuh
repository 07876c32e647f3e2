/// What the kernels of this folder share on the device: several numbers moved at once, bfloat16
/// bits, sums over the threads of a warp or block.
#pragma once

#include <cmath>
#include <cstdint>

#include "model/kernels/cuda/launch_sizes.hpp"
#include "parallel/cuda/launch.hpp"

namespace longspan::model::cuda {

using longspan::cuda::launch;

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

/// N neighbouring numbers, moved by one instruction: N = 4 for 16 bytes where pointers and strides
/// allow it, else N = 1.
template <int N, class T = float>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

template <int N>
__device__ inline Pack<N> load(const float* p) {
  return *reinterpret_cast<const Pack<N>*>(p);
}
template <int N>
__device__ inline void store(const Pack<N>& pack, float* p) {
  *reinterpret_cast<Pack<N>*>(p) = pack;
}
template <int N>
__device__ inline Pack<N> zero_pack() {
  Pack<N> pack;
#pragma unroll
  for (int j = 0; j < N; ++j) pack.v[j] = 0.0f;
  return pack;
}

/// Whether every one of these (null or not) may be read four floats at a time.
template <class... Pointer>
bool aligned16(const Pointer*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

/// The least power of two that is not below `value`.
inline std::int64_t power_of_two(std::int64_t value) {
  std::int64_t result = 1;
  while (result < value) result *= 2;
  return result;
}

/// row % tokens: a 64-bit division costs some hundred instructions, and few rows need it.
__device__ inline std::int64_t row_in_sequence(std::int64_t row, std::int64_t tokens) {
  if (((row | tokens) >> 32) == 0)
    return static_cast<std::uint32_t>(row) % static_cast<std::uint32_t>(tokens);
  return row % tokens;
}
__device__ inline std::int64_t sequence_of_row(std::int64_t row, std::int64_t tokens) {
  if (((row | tokens) >> 32) == 0)
    return static_cast<std::uint32_t>(row) / static_cast<std::uint32_t>(tokens);
  return row / tokens;
}

/// Bits of the nearest bfloat16 (ties to even) in the upper half, zeros below: the CPU's, where NaN
/// becomes quiet instead of the device's one NaN.
__device__ inline std::uint32_t bf16_word(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  const std::uint32_t rounded = bits + ((bits >> 16) & 1u) + 0x7FFFu;
  return (x != x ? bits | 0x400000u : rounded) & 0xFFFF0000u;
}

/// The sum over the lanes, the same bits in each.
template <class T>
__device__ inline T warp_sum(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

/// M sums over a team: the warp if blockDim.x is 32, else the whole block (then blockDim.y is 1).
/// Every thread gets all of them, the same bits. `scratch`: shared memory of 32 * M numbers; two
/// sums in a row need two of them, and the third may take the first again.
template <int M, class T>
__device__ inline void team_sum(T (&values)[M], T* scratch) {
#pragma unroll
  for (int j = 0; j < M; ++j) values[j] = warp_sum(values[j]);
  if (blockDim.x == 32) return;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  if (lane == 0) {
#pragma unroll
    for (int j = 0; j < M; ++j) scratch[warp * M + j] = values[j];
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < M; ++j) values[j] = warp_sum(lane < warps ? scratch[lane * M + j] : T(0));
}

}  // namespace longspan::model::cuda
