/// The arguments of the attention kernels on the device, and the functions that launch each of
/// them: attention_kernels.cpp fills these in and decides which kernel serves a call. Strides count
/// elements. Heads may be a slice of the tensor's, by pointers to its first.
#pragma once

#include <cstdint>

#include "model/kernels/cuda/attention_mask.cuh"

namespace longspan::model::cuda {

/// [batch, tokens, heads, head_size] in fp32, or a copy of it in bf16.
template <class T>
struct Tensor {
  T* data = nullptr;
  std::int64_t row = 0, batch = 0;
  /// The head of one sequence: where token 0 stands.
  __device__ T* of(std::int64_t sequence, std::int64_t head, std::int64_t head_size) const {
    return data + sequence * batch + head * head_size;
  }
};
/// [batch, heads, queries].
template <class T>
struct Statistic {
  T* data = nullptr;
  std::int64_t batch = 0;
  __device__ T* of(std::int64_t sequence, std::int64_t head, std::int64_t queries) const {
    return data + sequence * batch + head * queries;
  }
};

struct AttentionSizes {
  int batch = 0, heads = 0, kv_heads = 0, head_size = 0;
  float scale = 0.0f;
  __host__ __device__ int group() const { return heads / kv_heads; }
};

/// In the bf16 form q is read as fp32 and rounded on the way in; keys and values, which are read
/// once per query tile, come as bf16 copies in which padding is zeros.
struct ForwardParams {
  AttentionSizes sizes;
  DeviceMask mask;
  Tensor<const float> q, k, v;
  Tensor<const std::uint16_t> k_bf16, v_bf16;
  Tensor<float> o;
  Statistic<float> lse, sum;
  bool merge = false, more = false;
};

/// In the bf16 form all four inputs come as copies in bf16 in which padding is zeros.
struct BackwardParams {
  AttentionSizes sizes;
  DeviceMask mask;
  Tensor<const float> q, k, v, dout;
  Tensor<const std::uint16_t> q_bf16, k_bf16, v_bf16, dout_bf16;
  Statistic<const float> lse, delta;
  Tensor<float> dq, dk, dv;
};

/// Tokens per tile that a kernel wants its mask in.
struct TileSizes {
  int queries = 0, keys = 0;
};
TileSizes fp32_forward_tiles(int head_size);
TileSizes fp32_backward_tiles(int head_size);
inline constexpr TileSizes kBf16ForwardTiles{128, 64};
inline constexpr TileSizes kBf16KeyGradientTiles{64, 64};
inline constexpr TileSizes kBf16QueryGradientTiles{128, 32};
/// The head sizes the bf16 kernels are built for.
inline bool bf16_serves(std::int64_t head_size) {
  return head_size == 64 || head_size == 128;
}

void launch_fp32_forward(const ForwardParams& params, Stream& stream);
void launch_fp32_key_gradients(const BackwardParams& params, Stream& stream);
void launch_fp32_query_gradients(const BackwardParams& params, Stream& stream);
void launch_bf16_forward(const ForwardParams& params, Stream& stream);
void launch_bf16_key_gradients(const BackwardParams& params, Stream& stream);
void launch_bf16_query_gradients(const BackwardParams& params, Stream& stream);

}  // namespace longspan::model::cuda
