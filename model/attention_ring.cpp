#include "model/attention_ring.hpp"

#include <utility>

namespace longspan::model {

void ring_forward(const AttentionGeometry& geometry, Backend backend, View<const float> qkv,
                  AttentionSaved& saved, const PassContext& pass) {
  if (geometry.mask.window > 0) return window_ring_forward(geometry, backend, qkv, saved, pass);
  ProcessGroup& ring = *pass.shards.group;
  const int ranks = ring.size(), me = ring.rank();
  const int next = (me + 1) % ranks, previous = (me + ranks - 1) % ranks;
  BlockForward queries(geometry, backend, qkv, saved, pass, ranks);
  Buffer<float> here = pack_keys_values(geometry, backend, qkv);
  Buffer<float> arriving(backend.device, here.rows(), here.cols());
  for (int step = 0; step < ranks; ++step) {
    const bool last = step + 1 == ranks;
    PendingPtr exchange = last ? nullptr : ring.send_receive(here, next, arriving, previous);
    queries.attend(packed_block(geometry, here.data()), (me - step + ranks) % ranks);
    if (last) break;
    exchange->wait();
    std::swap(here, arriving);
  }
}

void ring_backward(const AttentionGeometry& geometry, Backend backend, View<const float> dout_NHK,
                   View<const float> qkv, View<const float> lse, Buffer<float> delta_BHT,
                   View<float> dqkv, const PassContext& pass) {
  if (geometry.mask.window > 0)
    return window_ring_backward(geometry, backend, dout_NHK, qkv, lse, std::move(delta_BHT), dqkv,
                                pass);
  ProcessGroup& ring = *pass.shards.group;
  const int ranks = ring.size(), me = ring.rank();
  const int next = (me + 1) % ranks, previous = (me + ranks - 1) % ranks;
  BlockBackward queries(geometry, backend, dout_NHK, qkv, lse, std::move(delta_BHT), dqkv, pass);
  Buffer<float> here = pack_keys_values(geometry, backend, qkv);
  const auto like_here = [&] { return Buffer<float>(backend.device, here.rows(), here.cols()); };
  Buffer<float> arriving = like_here();
  // The gradient of a block follows it one step behind, so that its transfer hides behind the
  // next block's compute: this rank adds its share to what has arrived and sends the sum on.
  // After `ranks` hops it is home.
  Buffer<float> share = like_here(), sum = like_here(), sum_arriving = like_here();
  PendingPtr gradient_exchange;
  for (int step = 0; step < ranks; ++step) {
    const bool last = step + 1 == ranks;
    PendingPtr exchange = last ? nullptr : ring.send_receive(here, next, arriving, previous);
    fill_zero(backend, share);
    queries.attend(packed_block(geometry, here.data()), (me - step + ranks) % ranks, share.data(),
                   share.cols());
    if (step > 0) {
      gradient_exchange->wait();
      std::swap(sum, sum_arriving);
      backend.kernels.add(share.size(), share.data(), sum.data(), backend.stream);
    } else {
      std::swap(sum, share);
    }
    gradient_exchange = ring.send_receive(sum, next, sum_arriving, previous);
    if (last) break;
    exchange->wait();
    std::swap(here, arriving);
  }
  gradient_exchange->wait();
  copy_columns(backend, dqkv.rows(), sum_arriving.cols(), sum_arriving.data(), sum_arriving.cols(),
               dqkv.data() + geometry.query_width(), dqkv.cols());
}

namespace {

class RingAttention : public AttentionScheme {
 public:
  RingAttention(const AttentionGeometry& geometry, Backend backend)
      : geometry_(geometry), backend_(backend) {}

  void forward(View<const float> qkv, AttentionSaved& saved,
               const PassContext& pass) const override {
    ring_forward(geometry_, backend_, qkv, saved, pass);
  }
  void backward(View<const float> dout_NHK, View<const float> qkv, const AttentionSaved& saved,
                View<float> dqkv, const PassContext& pass) const override {
    ring_backward(geometry_, backend_, dout_NHK, qkv, saved.lse,
                  attention_delta(geometry_, backend_, dout_NHK, saved, pass), dqkv, pass);
  }

 private:
  AttentionGeometry geometry_;
  Backend backend_;
};

}  // namespace

std::unique_ptr<AttentionScheme> make_ring_attention(const AttentionGeometry& geometry,
                                                     Backend backend) {
  return std::make_unique<RingAttention>(geometry, backend);
}

}  // namespace longspan::model
