#include "model/decoder.hpp"

#include <cmath>
#include <numeric>
#include <utility>

#include "model/attention_blocks.hpp"
#include "parallel/error.hpp"

namespace longspan::model {

Decoder::Decoder(Transformer& model, const AttentionConfig& attention, std::int64_t capacity)
    : model_(model), mask_{true, attention.window}, capacity_(capacity) {
  const ModelConfig& config = model.config();
  if (attention.mask != MaskKind::kCausal)
    fail_usage(
        "attention.mask=full: the model sees the future and cannot generate; train with "
        "attention.mask=causal");
  model.hold_weights();
  std::vector<std::int32_t> positions(static_cast<std::size_t>(capacity));
  std::iota(positions.begin(), positions.end(), 0);
  positions_ = {model.backend().device, model.backend().stream, std::move(positions)};
  for (std::int64_t i = 0; i < config.layers; ++i)
    cache_.emplace_back(model.backend().device, capacity, 2 * config.kv_heads * config.head_size);
}

std::vector<float> Decoder::append(const std::vector<std::int32_t>& tokens) {
  const ModelConfig& config = model_.config();
  const Backend backend = model_.backend();
  const std::int64_t count = static_cast<std::int64_t>(tokens.size()), width = config.width;
  const std::int64_t query_width = config.heads * config.head_size,
                     kv_width = config.kv_heads * config.head_size;
  if (length_ + count > capacity_)
    fail_usage(
        "{} tokens do not fit into the {} this model was trained with: ask for fewer tokens or a "
        "shorter prompt",
        length_ + count, capacity_);

  std::vector<std::int32_t> positions(static_cast<std::size_t>(count));
  std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(length_));
  const RotaryTable rotary(positions, config.head_size, config.rope_theta, backend);
  Buffer<float> x_ND(backend.device, count, width), normed_ND(backend.device, count, width);
  Buffer<float> branch_ND(backend.device, count, width),
      attended_NHK(backend.device, count, query_width);
  Buffer<float> qkv(backend.device, count, query_width + 2 * kv_width),
      lse(backend.device, config.heads, count);
  model_.embedding().forward_tokens({tokens.data(), count}, length_, x_ND);

  for (std::size_t layer = 0; layer < model_.blocks().size(); ++layer) {
    const Block& block = model_.blocks()[layer];
    block.attention_norm().forward(x_ND, normed_ND, nullptr);
    block.qkv().forward(normed_ND, qkv);
    if (config.position == PositionKind::kRope)
      rotary.apply(qkv, config.heads + config.kv_heads, false);
    if (config.precision == Precision::kBf16)
      backend.kernels.round_to_bf16(qkv.size(), qkv.data(), backend.stream);
    Buffer<float>& cache = cache_[layer];
    copy_columns(backend, count, 2 * kv_width, qkv.data() + query_width, qkv.cols(),
                 cache.view().row(length_), cache.cols());

    AttentionForwardArgs args;
    args.shape.batch = 1, args.shape.queries = count, args.shape.keys = length_ + count;
    args.shape.heads = config.heads, args.shape.kv_heads = config.kv_heads,
    args.shape.head_size = config.head_size;
    args.shape.query_positions = positions_.data() + length_;
    args.shape.key_positions = positions_.data();
    args.shape.query_runs = {1, {{length_, count}}};
    args.shape.key_runs = {1, {{0, length_ + count}}};
    args.shape.mask = mask_, args.shape.bf16_operands = config.precision == Precision::kBf16;
    args.shape.scale = 1.0f / std::sqrt(static_cast<float>(config.head_size));
    args.q = qkv.data(), args.q_row = qkv.cols();
    args.k = cache.data(), args.v = cache.data() + kv_width, args.kv_row = cache.cols();
    args.o = attended_NHK.data(), args.o_row = query_width;
    args.lse = lse.data();
    backend.kernels.attention_forward(args, backend.stream);

    block.output().forward(attended_NHK, branch_ND);
    block.mlp_norm().forward_sum(x_ND, branch_ND, {}, x_ND, normed_ND, nullptr);
    block.mlp().forward(normed_ND, branch_ND, nullptr);
    backend.kernels.add(x_ND.size(), branch_ND.data(), x_ND.data(), backend.stream);
  }
  length_ += count;

  model_.final_norm().forward(x_ND.view().slice_rows(count - 1, 1),
                              normed_ND.view().slice_rows(0, 1), nullptr);
  std::vector<float> logits(static_cast<std::size_t>(config.vocabulary));
  Buffer<float> logits_V(backend.device, 1, config.vocabulary);
  model_.output().logits(normed_ND.view().slice_rows(0, 1), logits_V);
  backend.device.copy(logits.data(), logits_V.data(), logits.size() * sizeof(float),
                      backend.stream);
  return logits;
}

}  // namespace longspan::model
