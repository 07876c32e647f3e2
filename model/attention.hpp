/// Softmax attention over the whole sequence, wherever its tokens are. With one rank it is the kernel; with several, keys and
/// values travel round the ring of the context group (Liu et al. 2023) while the queries stay: one packed message a step, posted
/// before the compute that hides it. Queries meet blocks of keys in any order, because the kernel masks by global positions and
/// merges partial results in fp32. Read next: kernels/attention.hpp.
#pragma once

#include "model/layer.hpp"

namespace longspan::model {

class Attention {
 public:
  struct Saved {
    Buffer<float> output_NHK;
    Buffer<float> lse_BHT;     ///< log-sum-exp over the WHOLE sequence, natural logarithm
  };
  Attention(const ModelConfig& config, const AttentionConfig& attention, Backend backend);

  /// qkv: [N, (H + 2G) * K], query heads, key heads, value heads of a token side by side, positions already applied. Fills
  /// saved.output_NHK and saved.lse_BHT (made here). Communicates over the context group if there is one: collective.
  void forward(View<const float> qkv, Saved& saved, const PassContext& pass) const;
  /// dqkv (written with `=`, shaped like qkv) from dout_NHK and what forward saved. Keys and values travel again, their gradients
  /// travel with them in fp32 and come home after the last step. Collective over the context group.
  void backward(View<const float> dout_NHK, View<const float> qkv, const Saved& saved, View<float> dqkv,
                const PassContext& pass) const;

 private:
  struct KeyBlock;
  AttentionShape shape(const PassContext& pass, int source) const;
  Buffer<float> pack_keys_values(View<const float> qkv) const;

  std::int64_t heads_, kv_heads_, head_size_;
  AttentionMask mask_;
  float scale_;
  Backend backend_;
};

}  // namespace longspan::model
