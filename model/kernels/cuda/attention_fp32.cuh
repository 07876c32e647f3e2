/// What the exact attention kernels share: tiles in shared memory and products of them in
/// registers, by a square of 16 x 16 threads. They are there to check with, and for head sizes
/// without a bf16 kernel: simple before fast. Read next: attention_fp32_forward.cu.
#pragma once

#include "model/kernels/cuda/attention_params.cuh"

namespace longspan::model::cuda {

inline constexpr int kSide = 16;
inline constexpr int kFp32Threads = kSide * kSide;
inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2 = 0.693147181f;

/// Rows of head_size floats lie so far apart that 8 neighbouring rows fall into different banks.
__host__ __device__ inline int tile_row(int head_size) {
  return head_size + 4;
}

/// a b + c, rounded once on the device.
__device__ inline float multiply_add(float a, float b, float c) {
#if defined(LONGSPAN_CUDA_EMULATED)
  return a * b + c;  // without a fused instruction fmaf is a slow function
#else
  return fmaf(a, b, c);
#endif
}

/// to[rows x head_size] = factor * tokens [first, first + rows) of one head. Rows past `count`, and
/// those for which `keep(token)` is false, become zeros whatever stands there.
template <class Keep>
__device__ inline void load_tile(const float* from, std::int64_t from_row, int first, int count,
                                 int rows, int head_size, float factor, Keep keep, float* to) {
  const int parts = head_size / 4;
  for (int i = threadIdx.x; i < rows * parts; i += kFp32Threads) {
    const int row = i / parts, part = i % parts, token = first + row;
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (token < count && keep(token)) {
      x = *reinterpret_cast<const float4*>(from + token * from_row + part * 4);
      x.x *= factor, x.y *= factor, x.z *= factor, x.w *= factor;
    }
    *reinterpret_cast<float4*>(to + row * tile_row(head_size) + part * 4) = x;
  }
}

/// c[i][j] = row (y * kMicro + i) of a times row (x + 16 j) of b, over head_size.
template <int kMicro>
__device__ inline void multiply_rows(const float* a, const float* b, int head_size, int y, int x,
                                     float (&c)[kMicro][kMicro]) {
#pragma unroll
  for (int i = 0; i < kMicro; ++i)
#pragma unroll
    for (int j = 0; j < kMicro; ++j) c[i][j] = 0.0f;
  const int row = tile_row(head_size);
  for (int d = 0; d < head_size; d += 4) {
    float4 left[kMicro], right[kMicro];
#pragma unroll
    for (int i = 0; i < kMicro; ++i)
      left[i] = *reinterpret_cast<const float4*>(a + (y * kMicro + i) * row + d);
#pragma unroll
    for (int j = 0; j < kMicro; ++j)
      right[j] = *reinterpret_cast<const float4*>(b + (x + kSide * j) * row + d);
#pragma unroll
    for (int i = 0; i < kMicro; ++i)
#pragma unroll
      for (int j = 0; j < kMicro; ++j) {
        c[i][j] = multiply_add(left[i].x, right[j].x, c[i][j]);
        c[i][j] = multiply_add(left[i].y, right[j].y, c[i][j]);
        c[i][j] = multiply_add(left[i].z, right[j].z, c[i][j]);
        c[i][j] = multiply_add(left[i].w, right[j].w, c[i][j]);
      }
  }
}

/// One thread's part of a [16 kMicro, head_size] result: rows y * kMicro + i, and of every 64
/// columns the four from 4 x on.
template <int kMicro, int kGroups>
struct Result {
  float4 sum[kMicro][kGroups];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kMicro; ++i)
#pragma unroll
      for (int n = 0; n < kGroups; ++n) sum[i][n] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }

  /// += p b: element (row, k) of p at p[row * p_row + k * p_depth], b [depth x head_size] a tile.
  __device__ void add_product(const float* p, int p_row, int p_depth, const float* b, int depth,
                              int head_size, int y, int x) {
    for (int k = 0; k < depth; ++k) {
      float left[kMicro];
#pragma unroll
      for (int i = 0; i < kMicro; ++i) left[i] = p[(y * kMicro + i) * p_row + k * p_depth];
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        const int column = 64 * n + 4 * x;
        if (column >= head_size) continue;
        const float4 right = *reinterpret_cast<const float4*>(b + k * tile_row(head_size) + column);
#pragma unroll
        for (int i = 0; i < kMicro; ++i) {
          sum[i][n].x = multiply_add(left[i], right.x, sum[i][n].x);
          sum[i][n].y = multiply_add(left[i], right.y, sum[i][n].y);
          sum[i][n].z = multiply_add(left[i], right.z, sum[i][n].z);
          sum[i][n].w = multiply_add(left[i], right.w, sum[i][n].w);
        }
      }
    }
  }

  /// to += factor * sum, rows [first, first + 16 kMicro) of `count`.
  __device__ void add_to(float* to, std::int64_t to_row, int first, int count, int head_size,
                         float factor, int y, int x) const {
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
      const int token = first + y * kMicro + i;
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        const int column = 64 * n + 4 * x;
        if (token >= count || column >= head_size) continue;
        float4* const at = reinterpret_cast<float4*>(to + token * to_row + column);
        float4 value = *at;
        value.x += factor * sum[i][n].x, value.y += factor * sum[i][n].y;
        value.z += factor * sum[i][n].z, value.w += factor * sum[i][n].w;
        *at = value;
      }
    }
  }
};

}  // namespace longspan::model::cuda
