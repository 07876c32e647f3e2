#include <utility>

#include "model/attention_blocks.hpp"

namespace longspan::model {
namespace {

class RingAttention : public AttentionScheme {
 public:
  RingAttention(const AttentionGeometry& geometry, Backend backend)
      : geometry_(geometry), backend_(backend) {}

  void forward(View<const float> qkv, AttentionSaved& saved,
               const PassContext& pass) const override {
    ProcessGroup& ring = *pass.shards.group;
    const int ranks = ring.size(), me = ring.rank();
    const int next = (me + 1) % ranks, previous = (me + ranks - 1) % ranks;
    BlockForward queries(geometry_, backend_, qkv, saved, pass);
    Buffer<float> here = pack_keys_values(geometry_, backend_, qkv);
    Buffer<float> arriving(backend_.device, here.rows(), here.cols());
    for (int step = 0; step < ranks; ++step) {
      const bool last = step + 1 == ranks;
      PendingPtr exchange = last ? nullptr : ring.send_receive(here, next, arriving, previous);
      queries.attend(packed_block(geometry_, here.data()), (me - step + ranks) % ranks);
      if (last) break;
      exchange->wait();
      std::swap(here, arriving);
    }
  }

  void backward(View<const float> dout_NHK, View<const float> qkv, const AttentionSaved& saved,
                View<float> dqkv, const PassContext& pass) const override {
    ProcessGroup& ring = *pass.shards.group;
    const int ranks = ring.size(), me = ring.rank();
    const int next = (me + 1) % ranks, previous = (me + ranks - 1) % ranks;
    BlockBackward queries(geometry_, backend_, dout_NHK, qkv, saved, dqkv, pass);
    Buffer<float> here = pack_keys_values(geometry_, backend_, qkv);
    const auto like_here = [&] { return Buffer<float>(backend_.device, here.rows(), here.cols()); };
    Buffer<float> arriving = like_here();
    // The gradient of a block follows it one step behind, so that its transfer hides behind the
    // next block's compute: this rank adds its share to what has arrived and sends the sum on.
    // After `ranks` hops it is home.
    Buffer<float> share = like_here(), sum = like_here(), sum_arriving = like_here();
    PendingPtr gradient_exchange;
    for (int step = 0; step < ranks; ++step) {
      const bool last = step + 1 == ranks;
      PendingPtr exchange = last ? nullptr : ring.send_receive(here, next, arriving, previous);
      fill_zero(backend_, share);
      queries.attend(packed_block(geometry_, here.data()), (me - step + ranks) % ranks,
                     share.data(), share.cols());
      if (step > 0) {
        gradient_exchange->wait();
        std::swap(sum, sum_arriving);
        backend_.kernels.add(share.size(), share.data(), sum.data(), backend_.stream);
      } else {
        std::swap(sum, share);
      }
      gradient_exchange = ring.send_receive(sum, next, sum_arriving, previous);
      if (last) break;
      exchange->wait();
      std::swap(here, arriving);
    }
    gradient_exchange->wait();
    copy_columns(backend_, dqkv.rows(), sum_arriving.cols(), sum_arriving.data(),
                 sum_arriving.cols(), dqkv.data() + geometry_.query_width(), dqkv.cols());
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
