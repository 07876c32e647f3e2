/// A backend's operations with somebody who watches: every call passes through, with its name and
/// what it does. ProfiledKernels adds up, TracedKernels writes down. Read next: profiled.hpp,
/// traced.hpp.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "model/kernels/kernels.hpp"

namespace longspan::model {

/// One call. Matrix products of different shapes are different operations.
struct OperationCall {
  std::string name;  ///< "matrix product 512 x 768 x 3072", "attention backward"
  /// Model FLOPs, as metrics.jsonl counts them: attention 4 or 8 per visible pair and channel,
  /// recomputation inside a kernel not counted. 0 for what is bound by memory.
  double flops = 0;
  double bytes = 0;  ///< that must be read or written at least once
};

class ObservedKernels : public Kernels {
 public:
  /// The backend must outlive it.
  explicit ObservedKernels(Backend backend) : kernels_(backend.kernels), device_(backend.device) {}

  void gemm(const GemmArgs& args, Stream& stream) override;
  void gemm_to_bf16(const GemmToBf16Args& args, Stream& stream) override;
  void gemm_gelu_forward(const GemmGeluArgs& args, Stream& stream) override;
  void gemm_gelu_backward(const GemmGeluBackwardArgs& args, Stream& stream) override;
  bool fuses_products() const override { return kernels_.fuses_products(); }
  void norm_forward(const NormForwardArgs& args, Stream& stream) override;
  void residual_norm_forward(const ResidualNormArgs& args, Stream& stream) override;
  void norm_backward(const NormBackwardArgs& args, Stream& stream) override;
  void gelu_forward(const GeluForwardArgs& args, Stream& stream) override;
  void gelu_bf16_forward(const GeluBf16ForwardArgs& args, Stream& stream) override;
  void gelu_backward(const GeluBackwardArgs& args, Stream& stream) override;
  void swiglu_forward(const SwigluForwardArgs& args, Stream& stream) override;
  void swiglu_backward(const SwigluBackwardArgs& args, Stream& stream) override;
  void swiglu_bf16_forward(const SwigluBf16ForwardArgs& args, Stream& stream) override;
  void swiglu_bf16_backward(const SwigluBf16BackwardArgs& args, Stream& stream) override;
  void residual_forward(const ResidualForwardArgs& args, Stream& stream) override;
  void residual_backward(const ResidualBackwardArgs& args, Stream& stream) override;
  void rotary(const RotaryArgs& args, Stream& stream) override;
  void embedding_forward(const EmbeddingForwardArgs& args, Stream& stream) override;
  void embedding_backward(const EmbeddingBackwardArgs& args, Stream& stream) override;
  void attention_forward(const AttentionForwardArgs& args, Stream& stream) override;
  void attention_delta(const AttentionDeltaArgs& args, Stream& stream) override;
  void attention_backward(const AttentionBackwardArgs& args, Stream& stream) override;
  void cross_entropy(const CrossEntropyArgs& args, Stream& stream) override;
  void adamw(const AdamwArgs& args, Stream& stream) override;
  void add(std::int64_t count, const float* x, float* y, Stream& stream) override;
  void add_rows(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row, float* y,
                std::int64_t y_row, Stream& stream) override;
  void add_column_sums(std::int64_t rows, std::int64_t cols, const float* x, float* y,
                       Stream& stream) override;
  double sum_of_squares(std::int64_t count, const float* x, Stream& stream) override;
  void round_to_bf16(std::int64_t count, float* x, Stream& stream) override;
  void to_bf16(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row,
               std::uint16_t* y, Stream& stream) override;
  void from_bf16(std::int64_t count, const std::uint16_t* x, float* y, Stream& stream) override;

 protected:
  /// Whether observe() is to be asked; if not, the call passes at the cost of this question.
  virtual bool observing() const { return true; }
  /// Calls `call` once.
  virtual void observe(const OperationCall& operation, Stream& stream,
                       const std::function<void()>& call) = 0;

 private:
  template <class Describe, class Call>
  void watch(Describe&& describe, Stream& stream, Call&& call);

  Kernels& kernels_;
  Device& device_;
};

}  // namespace longspan::model
