/// y = x W^T + b. The weight may be stored as several tensors one under the other (query, key,
/// value), which are adjacent in the parameter store and multiplied as one matrix. A rank may hold
/// a part of the outputs (column split) or of the inputs (row split; y is then one summand of the
/// result) and knows nothing of the others (parallel/tensor_parallel.hpp).
#pragma once

#include <string>
#include <vector>

#include "model/layer.hpp"
#include "parallel/tensor_parallel.hpp"

namespace longspan::model {

class Linear {
 public:
  struct Part {
    std::string name;  ///< "blocks.0.attention.query"
    DimPart outputs;
  };
  /// Weights start normal with `standard_deviation`, biases at 0. bf16: operands are rounded to
  /// bfloat16. With a row split the first rank adds the bias, so that it is in the sum once; its
  /// gradient is complete there and zero on the others.
  Linear(ParameterStore& store, const std::vector<Part>& parts, DimPart inputs, bool bias,
         float standard_deviation, bool bf16, Backend backend);

  std::int64_t inputs() const { return inputs_; }
  std::int64_t outputs() const { return outputs_; }

  /// x: [N, inputs], y: [N, outputs], of this rank.
  void forward(View<const float> x, View<float> y) const;
  /// dx = dy W (left out if dx is empty); dW += dy^T x; db += column sums of dy.
  void backward(View<const float> dy, View<const float> x, View<float> dx);

 private:
  ParameterStore& store_;
  ParameterStore::Id weight_ = 0, bias_ = 0;  ///< first part of each; the others follow
  std::int64_t inputs_, outputs_ = 0;
  bool adds_bias_, bf16_;
  Backend backend_;
};

}  // namespace longspan::model
