#include "model/attention.hpp"

#include <cmath>

#include "model/attention_blocks.hpp"

namespace longspan::model {

std::unique_ptr<AttentionScheme> make_attention_scheme(AttentionSchemeKind kind,
                                                       const AttentionGeometry& geometry,
                                                       Backend backend) {
  switch (kind) {
    case AttentionSchemeKind::kAllgather:
      return make_allgather_attention(geometry, backend);
    case AttentionSchemeKind::kUlysses:
      return make_ulysses_attention(geometry, backend);
    case AttentionSchemeKind::kHybrid:
      return make_hybrid_attention(geometry, backend);
    case AttentionSchemeKind::kAuto:
    case AttentionSchemeKind::kRing:
      break;
  }
  return make_ring_attention(geometry, backend);
}

Attention::Attention(const ModelConfig& config, const AttentionConfig& attention, Backend backend)
    : geometry_{config.heads,
                config.kv_heads,
                config.head_size,
                {attention.mask == MaskKind::kCausal, attention.window},
                1.0f / std::sqrt(static_cast<float>(config.head_size)),
                config.precision == Precision::kBf16},
      backend_(backend),
      scheme_(make_attention_scheme(attention.scheme, geometry_, backend)) {}

void Attention::forward(View<const float> qkv, Saved& saved, const PassContext& pass) const {
  saved.output_NHK = Buffer<float>(backend_.device, pass.rows(), geometry_.query_width());
  if (pass.shards.ranks() > 1) return scheme_->forward(qkv, saved, pass);
  BlockForward(geometry_, backend_, qkv, saved, pass, 1).attend(home_block(geometry_, qkv), 0);
}

void Attention::backward(View<const float> dout_NHK, View<const float> qkv, const Saved& saved,
                         View<float> dqkv, const PassContext& pass) const {
  if (pass.shards.ranks() > 1) return scheme_->backward(dout_NHK, qkv, saved, dqkv, pass);
  BlockBackward(geometry_, backend_, dout_NHK, qkv, saved.lse,
                attention_delta(geometry_, backend_, dout_NHK, saved, pass), dqkv, pass)
      .attend(home_block(geometry_, qkv), 0, dqkv.data() + geometry_.query_width(), dqkv.cols());
}

}  // namespace longspan::model
