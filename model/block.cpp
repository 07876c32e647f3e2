#include "model/block.hpp"

#include <fmt/format.h>

#include <cmath>

#include "model/tensor_rows.hpp"
#include "parallel/random.hpp"

namespace longspan::model {
namespace {

std::string block_name(std::int64_t index, const char* part) {
  return fmt::format("blocks.{}.{}", index, part);
}

/// Projections that end in the residual stream start smaller, so that its variance does not grow
/// with depth (GPT-2).
float output_deviation(const ModelConfig& config) {
  return 0.02f / std::sqrt(2.0f * static_cast<float>(config.layers));
}

std::vector<Linear::Part> qkv_parts(std::int64_t index, const ModelConfig& config,
                                    const TensorShards& tensor) {
  const DimPart query = tensor.part_of(config.heads).times(config.head_size);
  const DimPart kv = tensor.heads_of(config.kv_heads).times(config.head_size);
  return {{block_name(index, "attention.query"), query},
          {block_name(index, "attention.key"), kv},
          {block_name(index, "attention.value"), kv}};
}

/// What attention sees: this rank's heads.
ModelConfig with_own_heads(ModelConfig config, const TensorShards& tensor) {
  config.heads = tensor.part_of(config.heads).count;
  config.kv_heads = tensor.heads_of(config.kv_heads).count;
  return config;
}

}  // namespace

void Block::Saved::trim(Keep keep) {
  normed_ND.clear();
  normed2_ND.clear();
  if (keep == Keep::kAll) return;
  attention_norm = {};
  mlp_norm = {};
  qkv.clear();
  kept_qkv.clear();
  x2_ND.clear();
  mlp = {};
  attention.exchanged.reset();
  if (keep == Keep::kBlock) attention = {};
}

Block::Block(ParameterStore& store, std::int64_t index, const ModelConfig& config,
             const AttentionConfig& attention, std::int64_t mlp_chunk, Backend backend,
             const TensorShards& tensor)
    : index_(index),
      config_(with_own_heads(config, tensor)),
      first_parameter_(store.parameters().size()),
      attention_norm_(store, block_name(index, "attention_norm"), config, backend),
      qkv_(store, qkv_parts(index, config, tensor), config.width, config.bias, 0.02f,
           config.precision == Precision::kBf16, backend),
      output_(store, {{block_name(index, "attention.output"), config.width}},
              tensor.part_of(config.heads).times(config.head_size), config.bias,
              output_deviation(config), config.precision == Precision::kBf16, backend),
      mlp_norm_(store, block_name(index, "mlp_norm"), config, backend),
      mlp_(store, block_name(index, "mlp"), config, output_deviation(config), mlp_chunk, backend,
           tensor),
      attention_(config_, attention, backend),
      backend_(backend) {}

Dropout Block::dropout(const PassContext& pass, int site) const {
  const auto which = static_cast<std::uint64_t>(2 * index_ + site + 1);
  return pass.dropout(config_.dropout, derive_key(pass.batch.dropout_key, which), backend_);
}

Activation Block::normed(const Norm& norm, View<const float> x_ND) const {
  Buffer<float> normed_ND(backend_.device, x_ND.rows(), x_ND.cols());
  norm.forward(x_ND, normed_ND, nullptr);
  return {std::move(normed_ND), config_.precision == Precision::kBf16, backend_};
}

void Block::project_qkv(View<const float> x_ND, Saved& saved, const PassContext& pass,
                        const RotaryTable* rotary) const {
  const bool bf16 = config_.precision == Precision::kBf16;
  Buffer<float> normed_ND(backend_.device, x_ND.rows(), x_ND.cols());
  attention_norm_.forward(x_ND, normed_ND, &saved.attention_norm);
  saved.normed_ND = Activation(std::move(normed_ND), bf16, backend_);
  saved.qkv = Buffer<float>(backend_.device, pass.rows(), qkv_.outputs());
  qkv_.forward(GatheredRows(saved.normed_ND, pass, backend_).operand(), saved.qkv);
  if (rotary != nullptr) rotary->apply(saved.qkv, config_.heads + config_.kv_heads, false);
  if (bf16) backend_.kernels.round_to_bf16(saved.qkv.size(), saved.qkv.data(), backend_.stream);
}

void Block::attend(Saved& saved, const PassContext& pass) const {
  attention_.forward(saved.qkv, saved.attention, pass);
  if (saved.attention.exchanged)
    saved.qkv.clear();  // the same numbers, sharded by heads: once is enough
}

void Block::attend_residual(View<const float> x_ND, Saved& saved, const PassContext& pass) const {
  saved.x2_ND = Buffer<float>(backend_.device, x_ND.rows(), x_ND.cols());
  PartialRows attended(saved.x2_ND, pass, backend_);
  output_.forward(saved.attention.output_NHK, attended.view());
  attended.sum();
  Buffer<float> normed2_ND(backend_.device, x_ND.rows(), x_ND.cols());
  mlp_norm_.forward_sum(x_ND, saved.x2_ND, dropout(pass, 0), saved.x2_ND, normed2_ND,
                        &saved.mlp_norm);
  saved.normed2_ND =
      Activation(std::move(normed2_ND), config_.precision == Precision::kBf16, backend_);
}

void Block::forward(View<const float> x_ND, View<float> y_ND, Saved& saved, Keep keep,
                    const PassContext& pass, const RotaryTable* rotary) const {
  const bool all = keep == Keep::kAll;
  project_qkv(x_ND, saved, pass, rotary);
  if (all) saved.normed_ND.clear();
  attend(saved, pass);
  if (all)
    saved.kept_qkv =
        Activation(std::move(saved.qkv), config_.precision == Precision::kBf16, backend_);
  else
    saved.trim(Keep::kAttention);  // attention's output is still needed
  attend_residual(x_ND, saved, pass);
  {
    const GatheredRows normed2(saved.normed2_ND, pass, backend_);
    PartialRows branch(y_ND, pass, backend_);
    mlp_.forward(normed2.operand(), branch.view(), all ? &saved.mlp : nullptr);
    branch.sum();
  }
  backend_.kernels.residual_forward(
      {x_ND.rows(), x_ND.cols(), saved.x2_ND.data(), y_ND.data(), y_ND.data(), dropout(pass, 1)},
      backend_.stream);
  saved.trim(keep);
}

void Block::recompute(View<const float> x_ND, Saved& saved, Keep keep, const PassContext& pass,
                      const RotaryTable* rotary) const {
  if (keep == Keep::kAll) return;
  project_qkv(x_ND, saved, pass, rotary);
  if (keep == Keep::kBlock) attend(saved, pass);
  attend_residual(x_ND, saved, pass);
}

void Block::backward(View<const float> x_ND, Saved& saved, View<float> dx_ND,
                     const PassContext& pass, const RotaryTable* rotary) {
  const std::int64_t rows = x_ND.rows(), width = x_ND.cols();
  Device& device = backend_.device;
  const bool drops = dropout(pass, 0).probability > 0.0f;
  Buffer<float> dbranch_ND(device, rows,
                           width);  // gradient inside a branch; dx_ND is the residual stream's
  Buffer<float> masked_ND = drops ? Buffer<float>(device, rows, width) : Buffer<float>();
  const auto through_dropout = [&](int site) -> View<const float> {
    if (!drops) return dx_ND;
    backend_.kernels.residual_backward(
        {rows, width, dx_ND.data(), masked_ND.data(), dropout(pass, site)}, backend_.stream);
    return masked_ND;
  };

  if (saved.normed2_ND.empty()) saved.normed2_ND = normed(mlp_norm_, saved.x2_ND);
  {
    const GatheredRows dy(through_dropout(1), pass, backend_);
    const GatheredRows normed2(saved.normed2_ND, pass, backend_);
    PartialRows dnormed2(dbranch_ND, pass, backend_);
    mlp_.backward(dy.view(), normed2.operand(), saved.mlp, dnormed2.view());
    saved.mlp = {};
    dnormed2.sum();
  }
  mlp_norm_.backward(dbranch_ND, saved.x2_ND, saved.mlp_norm, dx_ND);
  saved.normed2_ND.clear();
  saved.x2_ND.clear();

  Buffer<float> dattention_NHK(device, pass.rows(), config_.heads * config_.head_size);
  output_.backward(GatheredRows(through_dropout(0), pass, backend_).view(),
                   saved.attention.output_NHK, dattention_NHK);
  // Both parts of p (dout v - delta) from the same dout, as the products read it: their rounding
  // errors cancel where the parts do.
  if (config_.precision == Precision::kBf16)
    backend_.kernels.round_to_bf16(dattention_NHK.size(), dattention_NHK.data(), backend_.stream);
  if (!saved.kept_qkv.empty()) saved.qkv = saved.kept_qkv.take(backend_);
  Buffer<float> dqkv(device, pass.rows(), qkv_.outputs());
  attention_.backward(dattention_NHK, saved.qkv, saved.attention, dqkv, pass);
  dattention_NHK.clear();
  saved.qkv.clear();
  saved.attention = {};
  if (rotary != nullptr) rotary->apply(dqkv, config_.heads + config_.kv_heads, true);
  if (saved.normed_ND.empty()) saved.normed_ND = normed(attention_norm_, x_ND);
  {
    const GatheredRows normed(saved.normed_ND, pass, backend_);
    PartialRows dnormed(dbranch_ND, pass, backend_);
    qkv_.backward(dqkv, normed.operand(), dnormed.view());
    dqkv.clear();
    dnormed.sum();
  }
  attention_norm_.backward(dbranch_ND, x_ND, saved.attention_norm, dx_ND);
  saved = {};
}

}  // namespace longspan::model
