/// The operations a backend offers, one argument struct each; its contract stands in the header of
/// the operation. None communicates. The CPU's are in kernels/cpu/; a plug-in brings others. Tests
/// compare every one with the plain loops in double of tests/support/reference.hpp.
#pragma once

#include <cstdint>

#include "model/kernels/attention.hpp"
#include "model/kernels/gemm.hpp"
#include "model/kernels/loss.hpp"
#include "model/kernels/norm.hpp"
#include "model/kernels/optimizer.hpp"
#include "model/kernels/pointwise.hpp"
#include "parallel/device.hpp"

namespace longspan::model {

class Kernels {
 public:
  virtual ~Kernels() = default;

  virtual void gemm(const GemmArgs& args, Stream& stream) = 0;
  /// By default one operation after the other (kernels/composed.cpp).
  virtual void gemm_to_bf16(const GemmToBf16Args& args, Stream& stream);
  virtual void gemm_gelu_forward(const GemmGeluArgs& args, Stream& stream);
  virtual void gemm_gelu_backward(const GemmGeluBackwardArgs& args, Stream& stream);
  /// Whether these two may be more than their parts; if not, who watches may watch the parts.
  virtual bool fuses_products() const { return false; }
  virtual void norm_forward(const NormForwardArgs& args, Stream& stream) = 0;
  virtual void residual_norm_forward(const ResidualNormArgs& args, Stream& stream);
  virtual void norm_backward(const NormBackwardArgs& args, Stream& stream) = 0;
  virtual void gelu_forward(const GeluForwardArgs& args, Stream& stream) = 0;
  virtual void gelu_bf16_forward(const GeluBf16ForwardArgs& args, Stream& stream);
  virtual void gelu_backward(const GeluBackwardArgs& args, Stream& stream) = 0;
  virtual void swiglu_forward(const SwigluForwardArgs& args, Stream& stream) = 0;
  virtual void swiglu_backward(const SwigluBackwardArgs& args, Stream& stream) = 0;
  virtual void swiglu_bf16_forward(const SwigluBf16ForwardArgs& args, Stream& stream);
  virtual void swiglu_bf16_backward(const SwigluBf16BackwardArgs& args, Stream& stream);
  virtual void residual_forward(const ResidualForwardArgs& args, Stream& stream) = 0;
  virtual void residual_backward(const ResidualBackwardArgs& args, Stream& stream) = 0;
  virtual void rotary(const RotaryArgs& args, Stream& stream) = 0;
  virtual void embedding_forward(const EmbeddingForwardArgs& args, Stream& stream) = 0;
  virtual void embedding_backward(const EmbeddingBackwardArgs& args, Stream& stream) = 0;
  virtual void attention_forward(const AttentionForwardArgs& args, Stream& stream) = 0;
  virtual void attention_delta(const AttentionDeltaArgs& args, Stream& stream) = 0;
  virtual void attention_backward(const AttentionBackwardArgs& args, Stream& stream) = 0;
  virtual void cross_entropy(const CrossEntropyArgs& args, Stream& stream) = 0;
  virtual void adamw(const AdamwArgs& args, Stream& stream) = 0;
  /// y += x.
  virtual void add(std::int64_t count, const float* x, float* y, Stream& stream) = 0;
  /// The same of `rows` rows of `cols` elements, whose beginnings are x_row and y_row apart.
  virtual void add_rows(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row,
                        float* y, std::int64_t y_row, Stream& stream) {
    for (std::int64_t row = 0; cols > 0 && row < rows; ++row)
      add(cols, x + row * x_row, y + row * y_row, stream);
  }
  /// Adds the column sums of x [rows, cols] to y [cols]: the gradient of a bias.
  virtual void add_column_sums(std::int64_t rows, std::int64_t cols, const float* x, float* y,
                               Stream& stream) = 0;
  /// Sum of x^2 in double, in an order that depends on `count` alone. Waits for the result.
  virtual double sum_of_squares(std::int64_t count, const float* x, Stream& stream) = 0;
  /// x = nearest bfloat16 of x (ties to even), still stored as fp32.
  virtual void round_to_bf16(std::int64_t count, float* x, Stream& stream) = 0;
  /// y [rows, cols] = bits of the nearest bfloat16 of x, whose rows are `x_row` elements apart.
  virtual void to_bf16(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row,
                       std::uint16_t* y, Stream& stream) = 0;
  /// y = x, exactly.
  virtual void from_bf16(std::int64_t count, const std::uint16_t* x, float* y, Stream& stream) = 0;
};

/// The CPU's operations: oneDNN for matrix products, Highway for the rest, OpenMP threads as
/// omp_get_max_threads().
Kernels& cpu_kernels();

/// Where a layer's memory lives and who computes on it; layers keep a reference.
struct Backend {
  Device& device;
  Kernels& kernels;
  Stream& stream;
};
Backend cpu_backend();

}  // namespace longspan::model
