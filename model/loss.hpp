/// Output projection and cross-entropy over the vocabulary, a chunk of tokens at a time: logits of
/// all tokens never exist. In training the gradient of a chunk is taken at once, so nothing is kept
/// and nothing is computed twice (Hsu et al. 2024).
#pragma once

#include <vector>

#include "model/layer.hpp"

namespace longspan::model {

class VocabularyLoss {
 public:
  /// `weight` is the [V, D] matrix of the output: the token table when embeddings are tied.
  VocabularyLoss(ParameterStore& store, ParameterStore::Id weight, const ModelConfig& config,
                 std::int64_t chunk, Backend backend);

  /// Sum of -log p(target) over the rows with target >= 0, in double, in row order. With dx_ND:
  /// also writes gradient_scale * d(sum)/dx and accumulates the weight's gradient.
  double forward_backward(View<const float> x_ND, View<const std::int32_t> targets_N,
                          float gradient_scale, View<float> dx_ND);
  /// logits: [rows, V].
  void logits(View<const float> x_ND, View<float> logits) const;
  std::int64_t chunk() const { return chunk_; }

 private:
  ParameterStore& store_;
  ParameterStore::Id weight_;
  std::int64_t width_, vocabulary_, chunk_;
  bool bf16_;
  Backend backend_;
};

/// Tokens whose logits exist at a time when memory.loss-chunk is 0: 64 MiB of logits, but no fewer
/// than 1024 tokens, because each chunk passes once over the gradient of the whole output matrix.
std::int64_t default_loss_chunk(std::int64_t vocabulary);

}  // namespace longspan::model
