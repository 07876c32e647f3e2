#include "model/attention.hpp"

#include <cmath>
#include <cstring>
#include <utility>

namespace longspan::model {

/// Keys and values of one rank: parts of the packed qkv rows at home, [N, 2 * G * K] rows while they travel.
struct Attention::KeyBlock {
  const float* keys;
  const float* values;
  std::int64_t row;
};

Attention::Attention(const ModelConfig& config, const AttentionConfig& attention, Backend backend)
    : heads_(config.heads),
      kv_heads_(config.kv_heads),
      head_size_(config.head_size),
      mask_{attention.mask == MaskKind::kCausal, attention.window},
      scale_(1.0f / std::sqrt(static_cast<float>(config.head_size))),
      backend_(backend) {}

AttentionShape Attention::shape(const PassContext& pass, int source) const {
  const std::int64_t tokens = pass.tokens();
  AttentionShape shape;
  shape.batch = pass.batch.sequences;
  shape.queries = shape.keys = tokens;
  shape.heads = heads_, shape.kv_heads = kv_heads_, shape.head_size = head_size_;
  shape.query_positions = pass.shards.mine().data();
  shape.key_positions = pass.shards.positions[static_cast<std::size_t>(source)].data();
  if (!pass.documents.empty()) {
    shape.query_documents = pass.documents[static_cast<std::size_t>(pass.shards.index)].data();
    shape.key_documents = pass.documents[static_cast<std::size_t>(source)].data();
  }
  shape.mask = mask_;
  shape.scale = scale_;
  return shape;
}

Buffer<float> Attention::pack_keys_values(View<const float> qkv) const {
  const std::int64_t width = 2 * kv_heads_ * head_size_;
  Buffer<float> packed(backend_.device, qkv.rows(), width);
  for (std::int64_t row = 0; row < qkv.rows(); ++row)
    backend_.device.copy(packed.data() + row * width, qkv.row(row) + heads_ * head_size_,
                         static_cast<std::size_t>(width) * sizeof(float), backend_.stream);
  return packed;
}

void Attention::forward(View<const float> qkv, Saved& saved, const PassContext& pass) const {
  const std::int64_t tokens = pass.tokens(), query_width = heads_ * head_size_, kv_width = kv_heads_ * head_size_;
  saved.output_NHK = Buffer<float>(backend_.device, pass.rows(), query_width);
  saved.lse_BHT = Buffer<float>(backend_.device, pass.batch.sequences * heads_, tokens);

  AttentionForwardArgs args;
  args.q = qkv.data(), args.q_row = qkv.cols(), args.q_batch = tokens * qkv.cols();
  args.o = saved.output_NHK.data(), args.o_row = query_width, args.o_batch = tokens * query_width;
  args.lse = saved.lse_BHT.data();
  const auto compute = [&](const KeyBlock& block, int source, bool merge) {
    args.shape = shape(pass, source);
    args.k = block.keys, args.v = block.values, args.kv_row = block.row, args.kv_batch = tokens * block.row;
    args.merge = merge;
    backend_.kernels.attention_forward(args, backend_.stream);
  };

  const KeyBlock home{qkv.data() + query_width, qkv.data() + query_width + kv_width, qkv.cols()};
  const int ranks = pass.shards.ranks(), me = pass.shards.index;
  if (ranks == 1) return compute(home, 0, false);

  ProcessGroup& ring = *pass.shards.group;
  const int next = (me + 1) % ranks, previous = (me + ranks - 1) % ranks;
  Buffer<float> here = pack_keys_values(qkv), arriving(backend_.device, here.rows(), here.cols());
  for (int step = 0; step < ranks; ++step) {
    const bool last = step + 1 == ranks;
    PendingPtr exchange = last ? nullptr : ring.send_receive(here, next, arriving, previous);
    const KeyBlock block = {here.data(), here.data() + kv_width, here.cols()};
    compute(block, (me - step + ranks) % ranks, step > 0);
    if (last) break;
    exchange->wait();
    std::swap(here, arriving);
  }
}

void Attention::backward(View<const float> dout_NHK, View<const float> qkv, const Saved& saved, View<float> dqkv,
                         const PassContext& pass) const {
  const std::int64_t tokens = pass.tokens(), query_width = heads_ * head_size_, kv_width = kv_heads_ * head_size_;
  Buffer<float> delta_BHT(backend_.device, pass.batch.sequences * heads_, tokens);
  AttentionDeltaArgs delta;
  delta.batch = pass.batch.sequences, delta.queries = tokens, delta.heads = heads_, delta.head_size = head_size_;
  delta.o = saved.output_NHK.data(), delta.dout = dout_NHK.data();
  delta.o_row = delta.dout_row = query_width;
  delta.o_batch = delta.dout_batch = tokens * query_width;
  delta.delta = delta_BHT.data();
  backend_.kernels.attention_delta(delta, backend_.stream);

  const auto zero = [&](float* data, std::int64_t count) {
    backend_.device.fill_zero(data, static_cast<std::size_t>(count) * sizeof(float), backend_.stream);
  };
  zero(dqkv.data(), dqkv.size());

  AttentionBackwardArgs args;
  args.q = qkv.data(), args.q_row = qkv.cols(), args.q_batch = tokens * qkv.cols();
  args.dout = dout_NHK.data(), args.dout_row = query_width, args.dout_batch = tokens * query_width;
  args.lse = saved.lse_BHT.data(), args.delta = delta_BHT.data();
  args.dq = dqkv.data(), args.dq_row = dqkv.cols(), args.dq_batch = tokens * dqkv.cols();
  const auto compute = [&](const KeyBlock& block, int source, float* dkeys, std::int64_t row) {
    args.shape = shape(pass, source);
    args.k = block.keys, args.v = block.values, args.kv_row = block.row, args.kv_batch = tokens * block.row;
    args.dk = dkeys, args.dv = dkeys + kv_width, args.dkv_row = row, args.dkv_batch = tokens * row;
    backend_.kernels.attention_backward(args, backend_.stream);
  };

  const KeyBlock home{qkv.data() + query_width, qkv.data() + query_width + kv_width, qkv.cols()};
  const int ranks = pass.shards.ranks(), me = pass.shards.index;
  if (ranks == 1) return compute(home, 0, dqkv.data() + query_width, dqkv.cols());

  ProcessGroup& ring = *pass.shards.group;
  const int next = (me + 1) % ranks, previous = (me + ranks - 1) % ranks;
  Buffer<float> here = pack_keys_values(qkv), arriving(backend_.device, here.rows(), here.cols());
  // The gradient of a block follows it one step behind, so that its transfer hides behind the next block's compute: this rank
  // adds its share to what has arrived and sends the sum on. After `ranks` hops it is home.
  Buffer<float> share(backend_.device, here.rows(), here.cols());
  Buffer<float> sum(backend_.device, here.rows(), here.cols()), sum_arriving(backend_.device, here.rows(), here.cols());
  PendingPtr gradient_exchange;
  for (int step = 0; step < ranks; ++step) {
    const bool last = step + 1 == ranks;
    PendingPtr exchange = last ? nullptr : ring.send_receive(here, next, arriving, previous);
    zero(share.data(), share.size());
    const KeyBlock block = {here.data(), here.data() + kv_width, here.cols()};
    compute(block, (me - step + ranks) % ranks, share.data(), share.cols());
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
  for (std::int64_t row = 0; row < dqkv.rows(); ++row)
    backend_.device.copy(dqkv.row(row) + query_width, sum_arriving.data() + row * sum_arriving.cols(),
                         static_cast<std::size_t>(sum_arriving.cols()) * sizeof(float), backend_.stream);
}

}  // namespace longspan::model
