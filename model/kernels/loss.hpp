/// Cross-entropy over the vocabulary on a chunk of rows; the gradient overwrites the logits.
#pragma once

#include <cstdint>

namespace longspan::model {

/// For every row with target >= 0: losses[row] = logsumexp(logits) - logits[target]; with backward,
/// the logits of the row become gradient_scale * (softmax - onehot(target)). Rows with target < 0
/// (ignored): loss 0, gradient 0. logits: [rows, row_stride], of which the first `vocabulary`
/// columns are real; the others (padding) get gradient 0.
struct CrossEntropyArgs {
  std::int64_t rows = 0, vocabulary = 0, row_stride = 0;
  float* logits = nullptr;
  const std::int32_t* targets = nullptr;
  float* losses = nullptr;
  bool backward = false;
  float gradient_scale = 1.0f;
};

}  // namespace longspan::model
