/// Cross-entropy over the vocabulary on a chunk of rows; the gradient overwrites the logits.
#pragma once

#include <cstdint>

namespace longspan::model {

/// A rank that holds all logits of a row takes kWhole. Ranks that each hold a part of the
/// vocabulary take kStatistics, combine their statistics (model/loss.cpp), and take kGradient.
enum class CrossEntropyPass { kWhole, kStatistics, kGradient };

/// For every row with target >= 0: losses[row] = logsumexp(logits) - logits[target]; with backward,
/// the logits of the row become gradient_scale * (softmax - onehot(target)). Rows with target < 0
/// (ignored): loss 0, gradient 0. logits: [rows, row_stride], of which the first `vocabulary`
/// columns are real; the others (padding) get gradient 0.
///
/// With a part of the vocabulary targets count from its first id; `vocabulary` stands for an id of
/// another part. kStatistics: statistics[row] = (maximum of the logits, sum of exp(logit -
/// maximum), logit of the target or 0 if it is another part's), zeros in ignored rows; the logits
/// stay. kGradient: statistics[row] = (maximum, sum, unused) of the whole row, and the logits
/// become their gradient as above.
struct CrossEntropyArgs {
  std::int64_t rows = 0, vocabulary = 0, row_stride = 0;
  float* logits = nullptr;
  const std::int32_t* targets = nullptr;
  float* losses = nullptr;
  bool backward = false;
  float gradient_scale = 1.0f;
  CrossEntropyPass pass = CrossEntropyPass::kWhole;  ///< the others do not touch losses, backward
  float* statistics = nullptr;                       ///< [rows, 3]
};

}  // namespace longspan::model
