// What is sent, in general: with h_r query and g_r key/value heads on rank r, me sends
//   forward   T B K (sum over r != me of (h_r + 2 g_r)  +  (P-1) h_me)        tokens out, output
//   back backward  T B K (sum over r != me of h_r  +  (P-1) (h_me + 2 g_me))       gradients
//             + T B (sum over r != me of h_r)                                 rowsums, delta
//             + T B K (sum over r != me of (h_r + 2 g_r))                     unless
//             saved.exchanged
#include <utility>

#include "model/attention_heads.hpp"

namespace longspan::model {
namespace {

class UlyssesAttention : public AttentionScheme {
 public:
  UlyssesAttention(const AttentionGeometry& geometry, Backend backend)
      : geometry_(geometry), backend_(backend) {}

  void forward(View<const float> qkv, AttentionSaved& saved,
               const PassContext& pass) const override {
    const HeadExchange heads(geometry_, backend_, pass);
    const std::int64_t length = heads.length();
    HeadExchange::Transfer inputs = heads.gather_qkv(qkv);
    HeadExchange::Transfer outputs = heads.make_return(false);
    saved.lse = Buffer<float>(backend_.device, heads.sequences() * heads.heads(), length);
    for (std::int64_t b = 0; b < heads.sequences(); ++b) {
      inputs.pending[static_cast<std::size_t>(b)]->wait();
      heads.attend(b, inputs.heads.data() + b * length * heads.qkv_width(),
                   outputs.heads.data() + b * length * heads.query_width(),
                   saved.lse.data() + b * length * heads.heads());
      heads.send_back(outputs, false, b);
    }
    inputs.tokens.clear();
    saved.exchanged.emplace(std::move(inputs.heads));
    heads.receive_outputs(outputs, saved.output_NHK);
  }

  void backward(View<const float> dout_NHK, View<const float> qkv, const AttentionSaved& saved,
                View<float> dqkv, const PassContext& pass) const override {
    const HeadExchange heads(geometry_, backend_, pass);
    const std::int64_t length = heads.length(), size = length * heads.qkv_width();
    // The rowsums first: they are small, and nothing can start without them.
    const Buffer<float> delta =
        heads.gather_scalars(attention_delta(geometry_, backend_, dout_NHK, saved, pass));
    HeadExchange::Transfer inputs, douts = heads.gather_queries(dout_NHK);
    if (!saved.exchanged) inputs = heads.gather_qkv(qkv);
    const float* qkv_heads = saved.exchanged ? saved.exchanged->data() : inputs.heads.data();
    HeadExchange::Transfer gradients = heads.make_return(true);
    fill_zero(backend_, gradients.heads);
    for (std::int64_t b = 0; b < heads.sequences(); ++b) {
      const auto at = static_cast<std::size_t>(b);
      douts.pending[at]->wait();
      if (!saved.exchanged) inputs.pending[at]->wait();
      const std::int64_t scalars = b * length * heads.heads();
      heads.attend_backward(
          b, qkv_heads + b * size, douts.heads.data() + b * length * heads.query_width(),
          saved.lse.data() + scalars, delta.data() + scalars, gradients.heads.data() + b * size);
      heads.send_back(gradients, true, b);
    }
    heads.receive_gradients(gradients, dqkv);
  }

 private:
  AttentionGeometry geometry_;
  Backend backend_;
};

}  // namespace

std::unique_ptr<AttentionScheme> make_ulysses_attention(const AttentionGeometry& geometry,
                                                        Backend backend) {
  return std::make_unique<UlyssesAttention>(geometry, backend);
}

}  // namespace longspan::model
