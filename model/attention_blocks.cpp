#include "model/attention_blocks.hpp"

#include <utility>

#include "parallel/error.hpp"

namespace longspan::model {
namespace {

AttentionShape block_shape(const AttentionGeometry& geometry, Backend backend,
                           const PassContext& pass, const KeyTokens& keys) {
  AttentionShape shape;
  shape.batch = pass.batch.sequences;
  shape.queries = pass.tokens(), shape.keys = keys.count;
  shape.heads = geometry.heads, shape.kv_heads = geometry.kv_heads;
  shape.head_size = geometry.head_size;
  shape.query_positions = pass.positions_of(pass.shards.index, backend);
  shape.key_positions = keys.positions;
  shape.query_documents = pass.documents_of(pass.shards.index, backend);
  if (shape.query_documents != nullptr) shape.key_documents = keys.documents;
  shape.mask = geometry.mask;
  shape.scale = geometry.scale;
  shape.bf16_operands = geometry.bf16;
  shape.query_runs = pass.runs_of(pass.shards.index), shape.key_runs = keys.runs;
  return shape;
}

}  // namespace

KeyTokens tokens_of(const PassContext& pass, int source, Backend backend) {
  return {pass.tokens(), pass.positions_of(source, backend), pass.documents_of(source, backend),
          pass.runs_of(source)};
}

KeyBlock home_block(const AttentionGeometry& geometry, View<const float> qkv) {
  const float* keys = qkv.data() + geometry.query_width();
  return {keys, keys + geometry.kv_width(), qkv.cols()};
}

KeyBlock packed_block(const AttentionGeometry& geometry, const float* packed) {
  return {packed, packed + geometry.kv_width(), 2 * geometry.kv_width()};
}

Buffer<float> pack_keys_values(const AttentionGeometry& geometry, Backend backend,
                               View<const float> qkv) {
  const std::int64_t width = 2 * geometry.kv_width();
  Buffer<float> packed(backend.device, qkv.rows(), width);
  copy_columns(backend, qkv.rows(), width, qkv.data() + geometry.query_width(), qkv.cols(),
               packed.data(), width);
  return packed;
}

void copy_columns(Backend backend, std::int64_t rows, std::int64_t width, const float* from,
                  std::int64_t from_row, float* to, std::int64_t to_row) {
  const auto bytes = [](std::int64_t count) {
    return static_cast<std::size_t>(count) * sizeof(float);
  };
  if (width == 0) return;
  backend.device.copy_rows(to, bytes(to_row), from, bytes(from_row), bytes(width), rows,
                           backend.stream);
}

void fill_zero(Backend backend, View<float> data) {
  if (data.empty()) return;
  backend.device.fill_zero(data.data(), static_cast<std::size_t>(data.size()) * sizeof(float),
                           backend.stream);
}

Buffer<float> attention_delta(const AttentionGeometry& geometry, Backend backend,
                              View<const float> dout_NHK, const AttentionSaved& saved,
                              const PassContext& pass) {
  Buffer<float> delta_BHT(backend.device, pass.batch.sequences * geometry.heads, pass.tokens());
  AttentionDeltaArgs args;
  args.batch = pass.batch.sequences, args.queries = pass.tokens();
  args.heads = geometry.heads, args.head_size = geometry.head_size;
  args.o = saved.output_NHK.data(), args.dout = dout_NHK.data();
  args.o_row = args.dout_row = geometry.query_width();
  args.o_batch = args.dout_batch = pass.tokens() * geometry.query_width();
  args.delta = delta_BHT.data();
  backend.kernels.attention_delta(args, backend.stream);
  return delta_BHT;
}

BlockForward::BlockForward(const AttentionGeometry& geometry, Backend backend,
                           View<const float> qkv, AttentionSaved& saved, const PassContext& pass,
                           std::int64_t blocks)
    : geometry_(geometry), backend_(backend), pass_(pass), blocks_left_(blocks) {
  const std::int64_t tokens = pass.tokens();
  const auto statistic = [&] {
    return Buffer<float>(backend.device, pass.batch.sequences * geometry.heads, tokens);
  };
  saved.lse = statistic();
  if (blocks > 1) sum_BHT_ = statistic();
  args_.q = qkv.data(), args_.q_row = qkv.cols(), args_.q_batch = tokens * qkv.cols();
  args_.o = saved.output_NHK.data(), args_.o_row = geometry.query_width();
  args_.o_batch = tokens * geometry.query_width();
  args_.lse = saved.lse.data(), args_.sum = sum_BHT_.data();
}

void BlockForward::attend(const KeyBlock& block, const KeyTokens& tokens) {
  if (blocks_left_ == 0) fail("attention: more blocks of keys than were announced");
  args_.more = --blocks_left_ > 0;
  args_.shape = block_shape(geometry_, backend_, pass_, tokens);
  args_.k = block.keys, args_.v = block.values;
  args_.kv_row = block.row, args_.kv_batch = tokens.count * block.row;
  backend_.kernels.attention_forward(args_, backend_.stream);
  args_.merge = true;
}

BlockBackward::BlockBackward(const AttentionGeometry& geometry, Backend backend,
                             View<const float> dout_NHK, View<const float> qkv,
                             View<const float> lse, Buffer<float> delta_BHT, View<float> dqkv,
                             const PassContext& pass)
    : geometry_(geometry), backend_(backend), pass_(pass), delta_BHT_(std::move(delta_BHT)) {
  fill_zero(backend, dqkv);
  const std::int64_t tokens = pass.tokens(), query_width = geometry.query_width();
  args_.q = qkv.data(), args_.q_row = qkv.cols(), args_.q_batch = tokens * qkv.cols();
  args_.dout = dout_NHK.data(), args_.dout_row = query_width;
  args_.dout_batch = tokens * query_width;
  args_.lse = lse.data(), args_.delta = delta_BHT_.data();
  args_.dq = dqkv.data(), args_.dq_row = dqkv.cols(), args_.dq_batch = tokens * dqkv.cols();
}

void BlockBackward::attend(const KeyBlock& block, const KeyTokens& tokens, float* dkeys,
                           std::int64_t row) {
  args_.shape = block_shape(geometry_, backend_, pass_, tokens);
  args_.k = block.keys, args_.v = block.values;
  args_.kv_row = block.row, args_.kv_batch = tokens.count * block.row;
  args_.dk = dkeys, args_.dv = dkeys + geometry_.kv_width();
  args_.dkv_row = row, args_.dkv_batch = tokens.count * row;
  backend_.kernels.attention_backward(args_, backend_.stream);
}

}  // namespace longspan::model
