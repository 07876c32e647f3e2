#include "model/transformer.hpp"

#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "model/attention_blocks.hpp"
#include "model/tensor_rows.hpp"
#include "parallel/error.hpp"

namespace longspan::model {
namespace {

/// What waits elsewhere between a block's forward and backward; LayerMemory::movable counts it.
std::vector<Buffer<float>*> movable(Buffer<float>& x_ND, Block::Saved& saved, Keep keep) {
  if (keep != Keep::kAttention) return {&x_ND};
  return {&x_ND, &saved.attention.output_NHK, &saved.attention.lse};
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, const AttentionConfig& attention,
                         const MemoryConfig& memory, SequenceShards shards, Backend backend,
                         ActivationPlan plan, OptimizerShard shard, const TensorShards& tensor)
    : config_(config),
      plan_(plan.keep_L.empty() ? uniform_plan(memory.keep, config.layers) : std::move(plan)),
      shards_(std::move(shards)),
      tensor_(tensor),
      backend_(backend),
      store_(tensor.ranks),
      embedding_(store_, config, backend, tensor) {
  if (shards_.tokens() % tensor.ranks != 0)
    fail(
        "{} tokens of a sequence cannot be shared evenly by {} tensor ranks: pad them "
        "(shard_sequence)",
        shards_.tokens(), tensor.ranks);
  blocks_.reserve(static_cast<std::size_t>(config.layers));
  // Units of the parameters: 0 the embedding, i + 1 block i, then what follows the blocks.
  for (std::int64_t i = 0; i < config.layers; ++i) {
    store_.begin_unit();
    blocks_.emplace_back(store_, i, config, attention, memory.mlp_chunk, backend, tensor);
  }
  store_.begin_unit();
  final_norm_.emplace(store_, "final_norm", config, backend);
  const auto output = config.tie_embeddings
                          ? embedding_.table()
                          : add_vocabulary_matrix(store_, "output.weight", config, tensor);
  loss_.emplace(store_, output, config, memory.loss_chunk, backend, tensor);
  store_.allocate(backend.device, shard);
  // Tied embeddings are a matrix of a product, too; untied ones are only looked up.
  if (config.precision == Precision::kBf16)
    store_.keep_rounded(config.tie_embeddings ? 0 : 1, backend);
  if (config.position == PositionKind::kRope)
    rotary_ =
        std::make_unique<RotaryTable>(shards_.mine(), config.head_size, config.rope_theta, backend);
  std::int32_t last_position = 0;
  for (const auto& positions : shards_.positions)
    for (std::int32_t p : positions) last_position = std::max(last_position, p);
  embedding_.prepare(last_position + 1);
}

PassContext Transformer::begin_pass(const MicroBatch& batch, bool training) {
  store_.begin_pass();
  PassContext pass{shards_, batch, training, {}, tensor_, constant_};
  if (batch.documents_BT.empty()) return pass;
  const std::size_t count = static_cast<std::size_t>(batch.documents_BT.size());
  pass.documents.resize(static_cast<std::size_t>(shards_.ranks()));
  if (shards_.ranks() == 1) {
    pass.documents[0].assign(batch.documents_BT.begin(), batch.documents_BT.end());
    return pass;
  }
  // Everybody needs to know where everybody's documents end. The bits travel as floats: nothing
  // computes with them.
  Device& device = backend_.device;
  Buffer<float> mine(device, batch.documents_BT.size()),
      all(device, shards_.ranks(), batch.documents_BT.size());
  device.copy(mine.data(), batch.documents_BT.data(), count * sizeof(float), backend_.stream);
  shards_.group->all_gather(mine, all)->wait();
  for (std::size_t r = 0; r < pass.documents.size(); ++r) {
    pass.documents[r].resize(count);
    device.copy(pass.documents[r].data(), all.view().row(static_cast<std::int64_t>(r)),
                count * sizeof(float), backend_.stream);
  }
  return pass;
}

void Transformer::hold_weights() {
  store_.begin_pass();
  for (int unit = 0; unit <= last_unit(); ++unit) store_.need_weights(unit);
}

void Transformer::need_output_weights() {
  store_.need_weights(last_unit(), config_.tie_embeddings ? 0 : -1);
  if (config_.tie_embeddings) store_.need_weights(0);
}

void Transformer::done_output_weights() {
  store_.done_weights(last_unit());
  if (config_.tie_embeddings) store_.done_weights(0);
}

double Transformer::train(const MicroBatch& batch, float gradient_scale) {
  const PassContext pass = begin_pass(batch, true);
  const std::int64_t rows = pass.own_rows(), width = config_.width;
  const std::size_t layers = blocks_.size();

  // Forward: x[i] is the input of block i, saved[i] what else backward needs and
  // the plan keeps.
  std::vector<Buffer<float>> x_ND(layers + 1);
  std::vector<Block::Saved> saved(layers);
  if (offload_ != nullptr) offload_->clear();
  x_ND[0] = Buffer<float>(backend_.device, rows, width);
  store_.need_weights(0, 1);
  embedding_.forward(x_ND[0], pass);
  store_.done_weights(0);
  for (std::size_t i = 0; i < layers; ++i) {
    const int unit = static_cast<int>(i) + 1;
    store_.need_weights(unit, unit + 1);
    x_ND[i + 1] = Buffer<float>(backend_.device, rows, width);
    blocks_[i].forward(x_ND[i], x_ND[i + 1], saved[i], plan_.keep_L[i], pass, rotary_.get());
    if (i + 1 == layers) continue;  // its backward comes next
    store_.done_weights(unit);
    if (offload_ == nullptr) continue;
    OffloadStack::Group group;
    for (Buffer<float>* buffer : movable(x_ND[i], saved[i], plan_.keep_L[i]))
      group.push_back(std::move(*buffer));
    offload_->push(std::move(group));
  }
  need_output_weights();
  Norm::Saved final_saved;
  Buffer<float> normed_ND(backend_.device, rows, width);
  final_norm_->forward(x_ND[layers], normed_ND, &final_saved);

  // Loss, and at once the gradient of the final norm's output.
  store_.need_gradients(last_unit());
  if (config_.tie_embeddings) store_.need_gradients(0);
  Buffer<float> dnormed_ND(backend_.device, rows, width);
  const double loss = loss_->forward_backward(normed_ND, batch.targets_BT, gradient_scale,
                                              dnormed_ND, batch.sequences);
  normed_ND.clear();

  // Backward of the same, in reverse: dx is the gradient of the residual stream.
  Buffer<float> dx_ND(backend_.device, rows, width);
  backend_.device.fill_zero(dx_ND.data(), static_cast<std::size_t>(dx_ND.size()) * sizeof(float),
                            backend_.stream);
  final_norm_->backward(dnormed_ND, x_ND[layers], final_saved, dx_ND);
  dnormed_ND.clear();
  x_ND[layers].clear();
  done_output_weights();
  store_.gradients_final(last_unit());
  for (std::size_t i = layers; i-- > 0;) {
    const int unit = static_cast<int>(i) + 1;
    store_.need_weights(unit, unit > 1 ? unit - 1 : -1);
    store_.need_gradients(unit);
    if (offload_ != nullptr && i + 1 < layers) {
      OffloadStack::Group group = offload_->pop();
      std::size_t at = 0;
      for (Buffer<float>* buffer : movable(x_ND[i], saved[i], plan_.keep_L[i]))
        *buffer = std::move(group[at++]);
    }
    if (offload_ != nullptr) offload_->prefetch();  // the layer below, behind this one's compute
    blocks_[i].recompute(x_ND[i], saved[i], plan_.keep_L[i], pass, rotary_.get());
    blocks_[i].backward(x_ND[i], saved[i], dx_ND, pass, rotary_.get());
    x_ND[i].clear();
    store_.done_weights(unit);
    store_.gradients_final(unit);
  }
  store_.need_gradients(0);
  embedding_.backward(dx_ND, pass);
  store_.gradients_final(0);
  return loss;
}

Buffer<float> Transformer::forward_only(
    const PassContext& pass,
    const std::function<void(const std::string&, View<const float>)>& visit) {
  Buffer<float> x_ND(backend_.device, pass.own_rows(), config_.width),
      y_ND(backend_.device, pass.own_rows(), config_.width);
  store_.need_weights(0, 1);
  embedding_.forward(x_ND, pass);
  store_.done_weights(0);
  visit("embedding", x_ND);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const int unit = static_cast<int>(i) + 1;
    store_.need_weights(unit, unit + 1);
    Block::Saved saved;
    blocks_[i].forward(x_ND, y_ND, saved, Keep::kBlock, pass, rotary_.get());
    store_.done_weights(unit);
    std::swap(x_ND, y_ND);
    visit(fmt::format("blocks.{}", i), x_ND);
  }
  need_output_weights();
  final_norm_->forward(x_ND, y_ND, nullptr);
  visit("final_norm", y_ND);
  return y_ND;
}

double Transformer::evaluate(const MicroBatch& batch) {
  const PassContext pass = begin_pass(batch, false);
  const Buffer<float> normed_ND = forward_only(pass, [](const std::string&, View<const float>) {});
  const double loss =
      loss_->forward_backward(normed_ND, batch.targets_BT, 0.0f, {}, batch.sequences);
  done_output_weights();
  return loss;
}

Buffer<float> Transformer::logits(const MicroBatch& batch) {
  const PassContext pass = begin_pass(batch, false);
  const Buffer<float> normed_ND = forward_only(pass, [](const std::string&, View<const float>) {});
  Buffer<float> result(backend_.device, pass.rows(), config_.vocabulary);
  const GatheredRows gathered(normed_ND, pass, backend_);
  if (tensor_.alone()) {
    loss_->logits(gathered.view(), result);
    done_output_weights();
    return result;
  }
  const std::int64_t part = config_.vocabulary / tensor_.ranks;
  Buffer<float> mine(backend_.device, pass.rows(), part),
      all(backend_.device, tensor_.ranks * pass.rows(), part);
  loss_->logits(gathered.view(), mine);
  done_output_weights();
  tensor_.group->all_gather(mine.view(), all)->wait();
  for (int rank = 0; rank < tensor_.ranks; ++rank)
    copy_columns(backend_, pass.rows(), part, all.view().row(rank * pass.rows()), part,
                 result.data() + rank * part, result.cols());
  return result;
}

std::string Transformer::first_non_finite(const MicroBatch& batch) {
  const auto finite = [&](View<const float> values) {
    return std::isfinite(
        backend_.kernels.sum_of_squares(values.size(), values.data(), backend_.stream));
  };
  std::string culprit;
  // Every rank goes through all units and all layers even after it found something: the others may
  // still be waiting for its part.
  for (int unit = 0; unit <= last_unit(); ++unit) {
    store_.need_weights(unit, unit < last_unit() ? unit + 1 : -1);
    for (ParameterStore::Id id = 0; id < store_.parameters().size() && culprit.empty(); ++id)
      if (store_.parameters()[id].unit == unit && !finite(store_.weight(id)))
        culprit = "weight " + store_.parameters()[id].name;
    store_.done_weights(unit);
  }
  const PassContext pass = begin_pass(batch, true);
  const Buffer<float> normed_ND =
      forward_only(pass, [&](const std::string& layer, View<const float> output) {
        if (culprit.empty() && !finite(output)) culprit = "output of " + layer;
      });
  // Likewise: tensor ranks share the loss.
  const double loss =
      loss_->forward_backward(normed_ND, batch.targets_BT, 0.0f, {}, batch.sequences);
  done_output_weights();
  if (culprit.empty() && !std::isfinite(loss)) culprit = "loss";
  return culprit;
}

}  // namespace longspan::model
