#include "model/attention_blocks.hpp"

namespace longspan::model {
namespace {

class AllgatherAttention : public AttentionScheme {
 public:
  AllgatherAttention(const AttentionGeometry& geometry, Backend backend)
      : geometry_(geometry), backend_(backend) {}

  void forward(View<const float> qkv, AttentionSaved& saved,
               const PassContext& pass) const override {
    Gathered all(*this, qkv, pass);
    BlockForward queries(geometry_, backend_, qkv, saved, pass, pass.shards.ranks());
    queries.attend(home_block(geometry_, qkv), pass.shards.index);
    all.wait();
    for (int source = 0; source < pass.shards.ranks(); ++source)
      if (source != pass.shards.index) queries.attend(all.block(source), source);
  }

  void backward(View<const float> dout_NHK, View<const float> qkv, const AttentionSaved& saved,
                View<float> dqkv, const PassContext& pass) const override {
    const std::int64_t rows = qkv.rows(), width = 2 * geometry_.kv_width();
    Gathered all(*this, qkv, pass);
    BlockBackward queries(geometry_, backend_, dout_NHK, qkv, saved.lse,
                          attention_delta(geometry_, backend_, dout_NHK, saved, pass), dqkv, pass);
    // Part r: what this rank's queries contribute to the gradients of rank r's keys and values.
    Buffer<float> parts(backend_.device, pass.shards.ranks() * rows, width);
    fill_zero(backend_, parts);
    const auto part = [&](int source) { return parts.data() + source * rows * width; };
    const int me = pass.shards.index;
    queries.attend(home_block(geometry_, qkv), me, part(me), width);
    all.wait();
    for (int source = 0; source < pass.shards.ranks(); ++source)
      if (source != me) queries.attend(all.block(source), source, part(source), width);
    all.clear();
    Buffer<float> sum(backend_.device, rows, width);
    pass.shards.group->reduce_scatter_sum(parts, sum)->wait();
    copy_columns(backend_, rows, width, sum.data(), width, dqkv.data() + geometry_.query_width(),
                 dqkv.cols());
  }

 private:
  /// Keys and values of all ranks, on their way until wait() returns.
  class Gathered {
   public:
    Gathered(const AllgatherAttention& scheme, View<const float> qkv, const PassContext& pass)
        : geometry_(scheme.geometry_),
          mine_(pack_keys_values(scheme.geometry_, scheme.backend_, qkv)),
          all_(scheme.backend_.device, pass.shards.ranks() * mine_.rows(), mine_.cols()),
          pending_(pass.shards.group->all_gather(mine_, all_)) {}
    void wait() {
      pending_->wait();
      mine_part_ = mine_.size();
      mine_.clear();
    }
    KeyBlock block(int source) const {
      return packed_block(geometry_, all_.data() + source * mine_part_);
    }
    void clear() { all_.clear(); }

   private:
    const AttentionGeometry& geometry_;
    Buffer<float> mine_, all_;
    PendingPtr pending_;  // behind the buffers: it ends before they do
    std::int64_t mine_part_ = 0;
  };

  AttentionGeometry geometry_;
  Backend backend_;
};

}  // namespace

std::unique_ptr<AttentionScheme> make_allgather_attention(const AttentionGeometry& geometry,
                                                          Backend backend) {
  return std::make_unique<AllgatherAttention>(geometry, backend);
}

}  // namespace longspan::model
