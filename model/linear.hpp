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
  bool adds_bias() const { return adds_bias_; }

  /// x: [N, inputs], y: [N, outputs], of this rank.
  void forward(const Operand& x, View<float> y) const;
  /// The same with y in bfloat16 alone; `room` as fp32 y. Operands are in bfloat16.
  void forward_to_bf16(const Operand& x, View<float> room, View<std::uint16_t> y) const;
  /// The same with GELU behind it. hidden, y: [N, outputs], fp32; bf16: both are room, and the
  /// results are the words `hidden_bf16` (empty: not wanted) and `y_bf16` (GemmGeluArgs).
  void forward_gelu(const Operand& x, View<float> hidden, View<float> y,
                    View<std::uint16_t> hidden_bf16, View<std::uint16_t> y_bf16) const;
  /// dx = dy W (left out if dx is empty); dW += dy^T x; db += column sums of dy.
  void backward(View<const float> dy, const Operand& x, View<float> dx);
  /// Of dy rounded to bfloat16, if there is no bias: the same bits as of dy before.
  void backward_rounded(View<const std::uint16_t> dy, const Operand& x, View<float> dx);
  /// The same where x = gelu(hidden) and `before` computed hidden: dx is the gradient of `hidden`
  /// [N, inputs], and the bias of `before` has got its gradient.
  void backward_gelu(View<const float> dy, const Operand& x, View<const float> hidden,
                     Linear& before, View<float> dx);
  /// Of the layer before in that case: the bias is left out.
  void backward_weights(View<const float> dy, const Operand& x, View<float> dx);

 private:
  /// What stands before x: GELU of `hidden`, which a bias has been added to. Without it both empty.
  struct Before {
    View<const float> hidden;
    float* dbias = nullptr;
    Before rows(std::int64_t first, std::int64_t count) const {
      return hidden.empty() ? Before{} : Before{hidden.slice_rows(first, count), dbias};
    }
  };
  GemmArgs forward_args(const Operand& x, float* y) const;
  /// The bias' gradient; null if another rank, or nobody, has it.
  float* dbias() const { return adds_bias_ ? store_.gradient(bias_).data() : nullptr; }
  void backward_weights(View<const float> dy, const Operand& x, View<float> dx,
                        const Before& before);
  /// Both products of a block of dy: the outputs [output, output + outputs) of the rows of x and
  /// dx, in rows of dy_row elements; in fp32, or in bfloat16 if dy_bf16 is not null.
  void products(const float* dy, const std::uint16_t* dy_bf16, std::int64_t dy_row,
                std::int64_t output, std::int64_t outputs, const Operand& x, View<float> dx,
                const Before& before);
  ParameterStore& store_;
  ParameterStore::Id weight_ = 0, bias_ = 0;  ///< first part of each; the others follow
  std::int64_t inputs_, outputs_ = 0;
  bool adds_bias_, bf16_;
  Backend backend_;
};

}  // namespace longspan::model
