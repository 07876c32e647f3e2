/// Softmax attention over the whole sequence, wherever its tokens are. With one rank it is the
/// kernel; with several, a scheme (attention.scheme) brings queries, keys and values together.
/// Queries meet blocks of keys in any order, because the kernel masks by global positions and
/// carries the softmax from block to block in fp32. Read next: attention_scheme.hpp.
#pragma once

#include "model/attention_scheme.hpp"
#include "model/layer.hpp"

namespace longspan::model {

class Attention {
 public:
  using Saved = AttentionSaved;
  Attention(const ModelConfig& config, const AttentionConfig& attention, Backend backend);

  /// qkv: [N, (H + 2G) * K], query heads, key heads, value heads of a token side by side, positions
  /// already applied. Fills `saved` (made here). Communicates over the context group if there is
  /// one: collective.
  void forward(View<const float> qkv, Saved& saved, const PassContext& pass) const;
  /// dqkv (written with `=`, shaped like qkv) from dout_NHK and what forward saved; qkv may be
  /// empty if saved.exchanged is there. Collective over the context group.
  void backward(View<const float> dout_NHK, View<const float> qkv, const Saved& saved,
                View<float> dqkv, const PassContext& pass) const;

 private:
  AttentionGeometry geometry_;
  Backend backend_;
  std::unique_ptr<AttentionScheme> scheme_;
};

}  // namespace longspan::model
