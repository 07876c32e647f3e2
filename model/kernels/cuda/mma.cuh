/// Matrix units and asynchronous copies as functions: mma.sync m16n8k16 in bf16 with fp32 sums,
/// ldmatrix, cp.async (PTX ISA 9.7.14.5.8, 9.7.14.5.15, 9.7.9.25.3; compute capability 8.0 and
/// later). Every one is called by all 32 lanes of a warp. With LONGSPAN_CUDA_EMULATED the same
/// functions are plain C++ with the same layouts, lane by lane. Read next: attention_bf16.cuh.
///
/// Layouts, with g = lane / 4 and t = lane % 4; a register holds two neighbours, the first in its
/// low half:
///   A 16x16, row major: a[0] = (g, 2t), a[1] = (g + 8, 2t), a[2] = (g, 2t + 8), a[3] = (g + 8, 2t
///     + 8), and the column after each
///   B 16x8: b[0] = (2t, g), b[1] = (2t + 8, g), and the row after each
///   C, D 16x8: d[0], d[1] = (g, 2t), (g, 2t + 1); d[2], d[3] = (g + 8, 2t), (g + 8, 2t + 1)
#pragma once

#include <cstdint>

#include "parallel/cuda/launch.hpp"

#if defined(LONGSPAN_CUDA_EMULATED)
#include <cstring>
#include <deque>
#include <vector>
#endif

namespace longspan::model::cuda {

#if !defined(LONGSPAN_CUDA_EMULATED)

/// Two bf16, rounded to nearest even; `low` in the low half.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// 2^x with a relative error of 2^-22; 0 for -inf, results below 2^-126 are 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// d += a b.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4],
                                         std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four 8x8 matrices of 16-bit numbers from shared memory. Lane 8 i + r gives the address of row r
/// of matrix i (16 bytes, aligned). r[i] = (g, 2t) and (g, 2t + 1) of matrix i.
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// The same, each matrix transposed: r[i] = (2t, g) and (2t + 1, g) of matrix i.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// Starts copying 16 (4) bytes from global to shared memory, both aligned to as much; without
/// `present` zeros are written and nothing is read. There for the thread itself after
/// wait_for_copies, for others after a barrier behind it.
__device__ __forceinline__ void copy_16_async(void* to, const void* from, bool present) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(address), "l"(from), "r"(present ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_4_async(void* to, const void* from, bool present) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"(address), "l"(from), "r"(present ? 4 : 0)
               : "memory");
}
/// The copies started since the last call become one group (which may be empty).
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Returns when at most kPending of the latest groups are still under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#else

inline std::uint32_t bf16_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return bits >> 16 | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline float bf16_value(std::uint32_t bits) {
  bits <<= 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline std::uint32_t pack_bf16(float low, float high) {
  return bf16_bits(low) | bf16_bits(high) << 16;
}
inline float fast_exp2(float x) {
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

inline float half_of(std::uint32_t pair, int which) {
  return bf16_value(pair >> 16 * which & 0xffff);
}

inline void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                     std::uint32_t b1) {
  struct Lane {
    const std::uint32_t* a;
    std::uint32_t b[2];
    float* d;
  } mine{a, {b0, b1}, d};
  cuda_emulator::warp<Lane>(0xffffffffu, "mma_bf16", mine, [](Lane** lanes, unsigned) {
    float left[16][16], right[8][16];  // [row][k], [column][k]
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i)
        for (int which = 0; which < 2; ++which)
          left[g + i % 2 * 8][2 * t + i / 2 * 8 + which] = half_of(lanes[lane]->a[i], which);
      for (int i = 0; i < 2; ++i)
        for (int which = 0; which < 2; ++which)
          right[g][2 * t + i * 8 + which] = half_of(lanes[lane]->b[i], which);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        // The hardware's order of summation is not specified: any will do.
        float sum = 0.0f;
        for (int k = 0; k < 16; ++k) sum += left[g + i / 2 * 8][k] * right[2 * t + i % 2][k];
        lanes[lane]->d[i] += sum;
      }
    }
  });
}

struct MatrixRows {
  const std::uint16_t* row;
  std::uint32_t* result;
};
inline void load_matrices(std::uint32_t (&r)[4], const void* row) {
  MatrixRows mine{static_cast<const std::uint16_t*>(row), r};
  cuda_emulator::warp<MatrixRows>(0xffffffffu, "ldmatrix", mine, [](MatrixRows** lanes, unsigned) {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        const std::uint16_t* const from = lanes[8 * i + lane / 4]->row + 2 * (lane % 4);
        lanes[lane]->result[i] = from[0] | static_cast<std::uint32_t>(from[1]) << 16;
      }
  });
}
inline void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) {
  MatrixRows mine{static_cast<const std::uint16_t*>(row), r};
  cuda_emulator::warp<MatrixRows>(
      0xffffffffu, "ldmatrix.trans", mine, [](MatrixRows** lanes, unsigned) {
        for (int lane = 0; lane < 32; ++lane)
          for (int i = 0; i < 4; ++i) {
            const int first = 8 * i + 2 * (lane % 4);
            lanes[lane]->result[i] = lanes[first]->row[lane / 4] |
                                     static_cast<std::uint32_t>(lanes[first + 1]->row[lane / 4])
                                         << 16;
          }
      });
}

/// The copies of one thread that are under way. They are done as late as is allowed, so that a
/// kernel that waits too little computes with what was there before.
struct EmulatedCopies {
  struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
    bool present;
  };
  std::vector<Copy> open;
  std::deque<std::vector<Copy> > groups;
  static EmulatedCopies& own() {
    static EmulatedCopies all[1024];
    return all[threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)];
  }
};
inline void copy_16_async(void* to, const void* from, bool present) {
  EmulatedCopies::own().open.push_back({to, from, 16, present});
}
inline void copy_4_async(void* to, const void* from, bool present) {
  EmulatedCopies::own().open.push_back({to, from, 4, present});
}
inline void commit_copies() {
  EmulatedCopies& own = EmulatedCopies::own();
  own.groups.push_back(std::move(own.open));
  own.open.clear();
}
template <int kPending>
inline void wait_for_copies() {
  auto& groups = EmulatedCopies::own().groups;
  for (; groups.size() > kPending; groups.pop_front())
    for (const EmulatedCopies::Copy& copy : groups.front())
      copy.present ? std::memcpy(copy.to, copy.from, copy.bytes)
                   : std::memset(copy.to, 0, copy.bytes);
}

#endif

}  // namespace longspan::model::cuda
