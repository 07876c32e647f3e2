/// The whole model: embedding, blocks, final norm, loss; owns parameters, gradients and activation
/// memory. Reads top to bottom in transformer.cpp. Read next: block.hpp.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/activation_plan.hpp"
#include "model/block.hpp"
#include "model/embedding.hpp"
#include "model/loss.hpp"
#include "parallel/offload_stack.hpp"

namespace longspan::model {

class Transformer {
 public:
  /// `config` is resolved (no zeros left). `shards` says which tokens of every sequence this rank
  /// holds, `tensor` which part of the weights; their groups outlive the model. The tokens of a
  /// rank are a multiple of the tensor ranks (shard_sequence), and so are heads, MLP width and
  /// vocabulary; key/value heads too, or a divisor of it. Every tensor rank gets the same batches.
  /// Without a plan every layer follows memory.keep, which then is not auto. `shard`: which of
  /// weights and gradients are not made here, because a ParameterSharding will bring them.
  Transformer(const ModelConfig& config, const AttentionConfig& attention,
              const MemoryConfig& memory, SequenceShards shards, Backend backend,
              ActivationPlan plan = {}, OptimizerShard shard = OptimizerShard::kNone,
              const TensorShards& tensor = {});

  /// From now on block inputs, and where attention is kept its output and log-sum-exp, wait in
  /// `place` between forward and backward (memory.offload); all but the last layer's, which are
  /// needed at once. The same bits. `place` outlives the model; its errors come out of train().
  void offload_to(OffloadStack& place) { offload_ = &place; }

  ParameterStore& parameters() { return store_; }
  const ParameterStore& parameters() const { return store_; }
  const ModelConfig& config() const { return config_; }
  const SequenceShards& shards() const { return shards_; }
  const TensorShards& tensor() const { return tensor_; }

  /// One micro-batch forward and backward. Returns the sum of the losses of this rank's own tokens:
  /// over the world each token counts once. Adds gradient_scale times the gradient of the loss to
  /// the gradients, and tells the keeper of the parameters (parameters.hpp) what it uses and which
  /// gradients are final; those of parameters that several tensor ranks hold are still to be summed
  /// (replicated_gradients.hpp). Collective over the context and tensor groups and, like all that
  /// follow, whatever the keeper is collective over.
  double train(const MicroBatch& batch, float gradient_scale);
  /// Sum of the losses of the own tokens without dropout and gradients.
  double evaluate(const MicroBatch& batch);
  /// Logits of every token of this context rank, [N, V]: for tests and short inputs.
  Buffer<float> logits(const MicroBatch& batch);
  /// Runs forward again and names the first layer whose output is not finite ("blocks.3"), "loss"
  /// if only the loss is bad, or the parameter that is not finite. Empty if everything is finite.
  std::string first_non_finite(const MicroBatch& batch);

  /// Everything that products read is current on return: for decoding, which calls layers by
  /// itself.
  void hold_weights();

  /// The parts, for decoding (decoder.hpp).
  const Embedding& embedding() const { return embedding_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  const Norm& final_norm() const { return *final_norm_; }
  const VocabularyLoss& output() const { return *loss_; }
  Backend backend() const { return backend_; }

 private:
  PassContext begin_pass(const MicroBatch& batch, bool training);
  /// Weights of the output: the last unit and, with tied embeddings, the first.
  void need_output_weights();
  void done_output_weights();
  int last_unit() const { return static_cast<int>(blocks_.size()) + 1; }
  /// Output of the final norm; the weights of the output are held on return.
  Buffer<float> forward_only(
      const PassContext& pass,
      const std::function<void(const std::string&, View<const float>)>& visit);

  ModelConfig config_;
  ActivationPlan plan_;
  OffloadStack* offload_ = nullptr;
  SequenceShards shards_;
  TensorShards tensor_;
  Backend backend_;
  ParameterStore store_;
  Embedding embedding_;
  std::vector<Block> blocks_;
  std::optional<Norm> final_norm_;
  std::optional<VocabularyLoss> loss_;
  std::unique_ptr<RotaryTable> rotary_;
  std::shared_ptr<PassCache> constant_ = std::make_shared<PassCache>();  ///< of shards_
};

}  // namespace longspan::model
