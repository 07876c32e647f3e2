/// y = x W^T + b. The weight may be stored as several tensors one under the other (query, key,
/// value), which are adjacent in the parameter store and multiplied as one matrix. A rank may hold
/// a part of the outputs (column split) or of the inputs (row split; y is then one summand of the
/// result) and knows nothing of the others (parallel/tensor_parallel.hpp).
#pragma once

#include <string>
#include <vector>

#include "model/activation.hpp"
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
  void forward(const Operand& x, View<float> y) const;
  /// dx = dy W (left out if dx is empty); dW += dy^T x; db += column sums of dy.
  void backward(View<const float> dy, const Operand& x, View<float> dx);

 private:
  /// Both products of a block of dy: the outputs [output, output + outputs) of the rows of x and
  /// dx, in rows of dy_row elements; in fp32, or in bfloat16 if dy_bf16 is not null.
  void products(const float* dy, const std::uint16_t* dy_bf16, std::int64_t dy_row,
                std::int64_t output, std::int64_t outputs, const Operand& x, View<float> dx);
  ParameterStore& store_;
  ParameterStore::Id weight_ = 0, bias_ = 0;  ///< first part of each; the others follow
  std::int64_t inputs_, outputs_ = 0;
  bool adds_bias_, bf16_;
  Backend backend_;
};

}  // namespace longspan::model
