// Vector types of the shim cuda_runtime.h, with CUDA's sizes and alignments.
#pragma once

#include "emulator.hpp"

using uint3 = ::cuda_emulator::Index;
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define LONGSPAN_VECTOR_TYPES(T, name, unit)              \
  struct alignas(2 * unit) name##2 {                      \
    T x, y;                                               \
  };                                                      \
  struct name##3 {                                        \
    T x, y, z;                                            \
  };                                                      \
  struct alignas(4 * unit < 16 ? 4 * unit : 16) name##4 { \
    T x, y, z, w;                                         \
  };                                                      \
  inline name##2 make_##name##2(T x, T y) {               \
    return {x, y};                                        \
  }                                                       \
  inline name##3 make_##name##3(T x, T y, T z) {          \
    return {x, y, z};                                     \
  }                                                       \
  inline name##4 make_##name##4(T x, T y, T z, T w) {     \
    return {x, y, z, w};                                  \
  }
LONGSPAN_VECTOR_TYPES(float, float, 4)
LONGSPAN_VECTOR_TYPES(double, double, 8)
LONGSPAN_VECTOR_TYPES(int, int, 4)
LONGSPAN_VECTOR_TYPES(short, short, 2)
LONGSPAN_VECTOR_TYPES(unsigned short, ushort, 2)
LONGSPAN_VECTOR_TYPES(long long, longlong, 8)
#undef LONGSPAN_VECTOR_TYPES
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) {
  return {x, y, z};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
