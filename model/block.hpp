/// One pre-norm transformer block: x2 = x + dropout(attention(norm(x))), y = x2 +
/// dropout(mlp(norm(x2))). Read next: attention.hpp, mlp.hpp; transformer.hpp stacks blocks.
#pragma once

#include "model/attention.hpp"
#include "model/mlp.hpp"
#include "model/norm.hpp"
#include "model/rotary.hpp"

namespace longspan::model {

class Block {
 public:
  /// What forward leaves for backward, per token and in elements: qkv (H + 2G)K, attention D + H,
  /// x2 D, MLP F (GELU) or 2F (SwiGLU). With bf16 what products read, and qkv, takes 2 bytes an
  /// element, the rest 4. The norms' outputs are not kept: backward makes each again, in one pass
  /// over what is. Tensor ranks keep norms and x2 of their own rows, the rest of
  /// all rows with their own heads and part of F.
  struct Saved {
    Norm::Saved attention_norm, mlp_norm;
    Activation normed_ND, normed2_ND;
    Buffer<float> qkv, x2_ND;
    Activation kept_qkv;  ///< qkv between forward and backward
    Attention::Saved attention;
    Mlp::Saved mlp;
    /// Drops what `keep` does not keep.
    void trim(Keep keep);
  };
  /// `mlp_chunk`: MemoryConfig::mlp_chunk.
  Block(ParameterStore& store, std::int64_t index, const ModelConfig& config,
        const AttentionConfig& attention, std::int64_t mlp_chunk, Backend backend,
        const TensorShards& tensor = {});

  /// Leaves in `saved` what `keep` keeps; recompute() brings back the rest, the same bits. `rotary`
  /// is null unless positions are rotary. x_ND, y_ND: the own rows. Collective over the context and
  /// tensor groups.
  void forward(View<const float> x_ND, View<float> y_ND, Saved& saved, Keep keep,
               const PassContext& pass, const RotaryTable* rotary) const;
  /// Fills in what forward did not leave, but the MLP's, which its backward computes chunk by
  /// chunk. With Keep::kBlock attention runs again: collective over the context group. Both gather
  /// and sum over the tensor group.
  void recompute(View<const float> x_ND, Saved& saved, Keep keep, const PassContext& pass,
                 const RotaryTable* rotary) const;
  /// dx_ND holds dy on entry and dx on return; parameter gradients accumulate. Consumes `saved`.
  /// Collective over the context and tensor groups.
  void backward(View<const float> x_ND, Saved& saved, View<float> dx_ND, const PassContext& pass,
                const RotaryTable* rotary);

  /// The parts, for decoding with a cache (decoder.cpp).
  const Norm& attention_norm() const { return attention_norm_; }
  const Linear& qkv() const { return qkv_; }
  const Linear& output() const { return output_; }
  const Norm& mlp_norm() const { return mlp_norm_; }
  const Mlp& mlp() const { return mlp_; }
  ParameterStore::Id first_parameter() const { return first_parameter_; }

 private:
  /// The norm's output as products read it.
  Activation normed(const Norm& norm, View<const float> x_ND) const;
  void project_qkv(View<const float> x_ND, Saved& saved, const PassContext& pass,
                   const RotaryTable* rotary) const;
  void attend(Saved& saved, const PassContext& pass) const;
  void attend_residual(View<const float> x_ND, Saved& saved, const PassContext& pass) const;
  Dropout dropout(const PassContext& pass, int site) const;

  std::int64_t index_;
  ModelConfig config_;  ///< with the heads of this tensor rank
  ParameterStore::Id first_parameter_;
  Norm attention_norm_;
  Linear qkv_, output_;
  Norm mlp_norm_;
  Mlp mlp_;
  Attention attention_;
  Backend backend_;
};

}  // namespace longspan::model
