/// Output projection and cross-entropy over the vocabulary, a chunk of tokens at a time: logits of
/// all tokens never exist. In training the gradient of a chunk is taken at once, so nothing is kept
/// and nothing is computed twice (Hsu et al. 2024). Tensor ranks share the vocabulary: each has its
/// part of the logits of all tokens, and three numbers per token make the loss of the parts
/// (Shoeybi et al. 2019, section 3).
#pragma once

#include <cstdint>
#include <vector>

#include "model/layer.hpp"

namespace longspan::model {

class VocabularyLoss {
 public:
  /// `weight` is the [V, D] matrix of the output, or this rank's rows of it: the token table when
  /// embeddings are tied. `chunk`: tokens, of all tensor ranks together.
  VocabularyLoss(ParameterStore& store, ParameterStore::Id weight, const ModelConfig& config,
                 std::int64_t chunk, Backend backend, const TensorShards& tensor = {});

  /// Sum of -log p(target) over the rows with target >= 0, in double, in row order. With dx_ND:
  /// also writes gradient_scale * d(sum)/dx and accumulates the weight's gradient. x_ND and dx_ND:
  /// the own rows; targets_N: those of all tensor ranks, of `sequences` sequences one behind the
  /// other. The sum is over the own rows. Collective over the tensor group, if there is one.
  double forward_backward(View<const float> x_ND, View<const std::int32_t> targets_N,
                          float gradient_scale, View<float> dx_ND, std::int64_t sequences = 1);
  /// logits: [rows, V], or this rank's part of V. Does not communicate.
  void logits(View<const float> x_ND, View<float> logits) const;
  std::int64_t chunk() const { return chunk_; }

 private:
  double forward_backward_shared(View<const float> x_ND, View<const std::int32_t> targets_N,
                                 float gradient_scale, View<float> dx_ND, std::int64_t sequences);
  /// The targets of all tensor ranks as this rank's part of the vocabulary counts them, chunk after
  /// chunk of `most` own rows: rows [first, first + most) of rank 0, 1, ... Their order does not
  /// matter to a loss.
  std::vector<std::int32_t> gathered_targets(View<const std::int32_t> targets_N, std::int64_t rows,
                                             std::int64_t tokens, std::int64_t most) const;
  /// dW += dlogits^T x; dx = dlogits W.
  void accumulate_weight_gradient(View<const float> dlogits, View<const float> x_ND);
  void input_gradient(View<const float> dlogits, View<float> dx_ND) const;

  ParameterStore& store_;
  ParameterStore::Id weight_;
  TensorShards tensor_;
  std::int64_t width_, first_id_,
      vocabulary_;  ///< the rank's part: ids [first, first + vocabulary)
  std::int64_t chunk_;
  bool bf16_;
  Backend backend_;
};

/// Tokens whose logits exist at a time when memory.loss-chunk is 0: 64 MiB of logits, but no fewer
/// than 1024 tokens, because each chunk passes once over the gradient of the whole output matrix.
std::int64_t default_loss_chunk(std::int64_t vocabulary);

}  // namespace longspan::model
