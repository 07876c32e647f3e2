#include "model/transformer.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <utility>

#include "model/tensor_rows.hpp"
#include "parallel/error.hpp"

namespace longspan::model {
namespace {

/// What waits in a file between a block's forward and backward; LayerMemory::movable counts it.
std::vector<Buffer<float>*> movable(Buffer<float>& x_ND, Block::Saved& saved, Keep keep) {
  if (keep != Keep::kAttention) return {&x_ND};
  return {&x_ND, &saved.attention.output_NHK, &saved.attention.lse};
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, const AttentionConfig& attention,
                         const MemoryConfig& memory, SequenceShards shards, Backend backend,
                         ActivationPlan plan, const TensorShards& tensor)
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
  for (std::int64_t i = 0; i < config.layers; ++i)
    blocks_.emplace_back(store_, i, config, attention, backend, tensor);
  first_final_parameter_ = store_.parameters().size();
  final_norm_.emplace(store_, "final_norm", config, backend);
  const auto output = config.tie_embeddings
                          ? embedding_.table()
                          : add_vocabulary_matrix(store_, "output.weight", config, tensor);
  loss_.emplace(store_, output, config, memory.loss_chunk, backend, tensor);
  store_.allocate(backend.device);
  if (config.position == PositionKind::kRope)
    rotary_ =
        std::make_unique<RotaryTable>(shards_.mine(), config.head_size, config.rope_theta, backend);
  std::int32_t last_position = 0;
  for (const auto& positions : shards_.positions)
    for (std::int32_t p : positions) last_position = std::max(last_position, p);
  embedding_.prepare(last_position + 1);
}

PassContext Transformer::begin_pass(const MicroBatch& batch, bool training) const {
  PassContext pass{shards_, batch, training, {}, tensor_};
  if (batch.documents_BT.empty()) return pass;
  const std::size_t count = static_cast<std::size_t>(batch.documents_BT.size());
  pass.documents.resize(static_cast<std::size_t>(shards_.ranks()));
  if (shards_.ranks() == 1) {
    pass.documents[0].assign(batch.documents_BT.begin(), batch.documents_BT.end());
    return pass;
  }
  // Everybody needs to know where everybody's documents end. The bits travel as floats: nothing
  // computes with them.
  std::vector<float> mine(count), all(count * pass.documents.size());
  std::memcpy(mine.data(), batch.documents_BT.data(), count * sizeof(float));
  shards_.group
      ->all_gather({mine.data(), static_cast<std::int64_t>(count)},
                   {all.data(), static_cast<std::int64_t>(all.size())})
      ->wait();
  for (std::size_t r = 0; r < pass.documents.size(); ++r) {
    pass.documents[r].resize(count);
    std::memcpy(pass.documents[r].data(), all.data() + r * count, count * sizeof(float));
  }
  return pass;
}

double Transformer::train(const MicroBatch& batch, float gradient_scale,
                          const GradientsReady& ready) {
  const PassContext pass = begin_pass(batch, true);
  const std::int64_t rows = pass.own_rows(), width = config_.width;
  const std::size_t layers = blocks_.size();

  // Forward: x[i] is the input of block i, saved[i] what else backward needs and
  // the plan keeps.
  std::vector<Buffer<float>> x_ND(layers + 1);
  std::vector<Block::Saved> saved(layers);
  if (offload_ != nullptr) offload_->clear();
  x_ND[0] = Buffer<float>(backend_.device, rows, width);
  embedding_.forward(x_ND[0], pass);
  for (std::size_t i = 0; i < layers; ++i) {
    x_ND[i + 1] = Buffer<float>(backend_.device, rows, width);
    blocks_[i].forward(x_ND[i], x_ND[i + 1], saved[i], pass, rotary_.get());
    saved[i].trim(plan_.keep_L[i]);
    if (offload_ == nullptr || i + 1 == layers) continue;
    SpillFile::Group group;
    for (Buffer<float>* buffer : movable(x_ND[i], saved[i], plan_.keep_L[i]))
      group.push_back(std::move(*buffer));
    offload_->push(std::move(group));
  }
  Norm::Saved final_saved;
  Buffer<float> normed_ND(backend_.device, rows, width);
  final_norm_->forward(x_ND[layers], normed_ND, &final_saved);

  // Loss, and at once the gradient of the final norm's output.
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
  if (ready && !config_.tie_embeddings) ready(store_.offset(first_final_parameter_));
  for (std::size_t i = layers; i-- > 0;) {
    if (offload_ != nullptr && i + 1 < layers) {
      SpillFile::Group group = offload_->pop();
      std::size_t at = 0;
      for (Buffer<float>* buffer : movable(x_ND[i], saved[i], plan_.keep_L[i]))
        *buffer = std::move(group[at++]);
    }
    if (offload_ != nullptr) offload_->prefetch();  // the layer below, behind this one's compute
    blocks_[i].recompute(x_ND[i], saved[i], plan_.keep_L[i], pass, rotary_.get());
    blocks_[i].backward(x_ND[i], saved[i], dx_ND, pass, rotary_.get());
    x_ND[i].clear();
    if (ready) ready(store_.offset(blocks_[i].first_parameter()));
  }
  embedding_.backward(dx_ND, pass);
  if (ready) ready(0);
  return loss;
}

Buffer<float> Transformer::forward_only(
    const PassContext& pass,
    const std::function<bool(const std::string&, View<const float>)>& visit) {
  Buffer<float> x_ND(backend_.device, pass.own_rows(), config_.width),
      y_ND(backend_.device, pass.own_rows(), config_.width);
  embedding_.forward(x_ND, pass);
  bool go_on = visit("embedding", x_ND);
  for (std::size_t i = 0; i < blocks_.size() && go_on; ++i) {
    Block::Saved saved;
    blocks_[i].forward(x_ND, y_ND, saved, pass, rotary_.get());
    std::swap(x_ND, y_ND);
    go_on = visit(fmt::format("blocks.{}", i), x_ND);
  }
  if (go_on) {
    final_norm_->forward(x_ND, y_ND, nullptr);
    visit("final_norm", y_ND);
  }
  return y_ND;
}

double Transformer::evaluate(const MicroBatch& batch) {
  const PassContext pass = begin_pass(batch, false);
  const Buffer<float> normed_ND =
      forward_only(pass, [](const std::string&, View<const float>) { return true; });
  return loss_->forward_backward(normed_ND, batch.targets_BT, 0.0f, {}, batch.sequences);
}

Buffer<float> Transformer::logits(const MicroBatch& batch) {
  const PassContext pass = begin_pass(batch, false);
  const Buffer<float> normed_ND =
      forward_only(pass, [](const std::string&, View<const float>) { return true; });
  Buffer<float> result(backend_.device, pass.rows(), config_.vocabulary);
  const GatheredRows gathered(normed_ND, pass, backend_);
  if (tensor_.alone()) {
    loss_->logits(gathered.view(), result);
    return result;
  }
  const std::int64_t part = config_.vocabulary / tensor_.ranks;
  Buffer<float> mine(backend_.device, pass.rows(), part),
      all(backend_.device, tensor_.ranks * pass.rows(), part);
  loss_->logits(gathered.view(), mine);
  backend_.stream.synchronize();
  tensor_.group->all_gather(mine.view(), all)->wait();
  for (std::int64_t i = 0; i < all.view().rows(); ++i)
    backend_.device.copy(result.view().row(i % pass.rows()) + i / pass.rows() * part,
                         all.view().row(i), static_cast<std::size_t>(part) * sizeof(float),
                         backend_.stream);
  backend_.stream.synchronize();
  return result;
}

std::string Transformer::first_non_finite(const MicroBatch& batch) {
  const auto finite = [&](View<const float> values) {
    return std::isfinite(
        backend_.kernels.sum_of_squares(values.size(), values.data(), backend_.stream));
  };
  std::string culprit;
  for (ParameterStore::Id id = 0; id < store_.parameters().size() && culprit.empty(); ++id)
    if (!finite(store_.weight(id))) culprit = "weight " + store_.parameters()[id].name;
  const PassContext pass = begin_pass(batch, true);
  // Every rank runs all layers even after it found something: the others may still be in the ring.
  const Buffer<float> normed_ND =
      forward_only(pass, [&](const std::string& layer, View<const float> output) {
        if (culprit.empty() && !finite(output)) culprit = "output of " + layer;
        return true;
      });
  // Likewise: tensor ranks share the loss.
  const double loss =
      loss_->forward_backward(normed_ND, batch.targets_BT, 0.0f, {}, batch.sequences);
  if (culprit.empty() && !std::isfinite(loss)) culprit = "loss";
  return culprit;
}

}  // namespace longspan::model
