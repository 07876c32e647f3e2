#include "model/kernels/cpu/attention.hpp"
#include "model/kernels/cpu/bf16_operand.hpp"
#include "model/kernels/cpu/gemm.hpp"
#include "model/kernels/cpu/kernels_cpu.hpp"
#include "model/kernels/kernels.hpp"

namespace longspan::model {
namespace {

/// Every operation has finished when it returns; the stream has nothing to order.
class CpuKernels final : public Kernels {
 public:
  void gemm(const GemmArgs& args, Stream&) override { cpu::gemm(args); }
  void gemm_to_bf16(const GemmToBf16Args& args, Stream&) override { cpu::gemm_to_bf16(args); }
  void norm_forward(const NormForwardArgs& args, Stream&) override { cpu::norm_forward(args); }
  void residual_norm_forward(const ResidualNormArgs& args, Stream&) override {
    cpu::residual_norm_forward(args);
  }
  void norm_backward(const NormBackwardArgs& args, Stream&) override { cpu::norm_backward(args); }
  void gelu_forward(const GeluForwardArgs& args, Stream&) override { cpu::gelu_forward(args); }
  void gelu_backward(const GeluBackwardArgs& args, Stream&) override { cpu::gelu_backward(args); }
  void swiglu_forward(const SwigluForwardArgs& args, Stream&) override {
    cpu::swiglu_forward(args);
  }
  void swiglu_backward(const SwigluBackwardArgs& args, Stream&) override {
    cpu::swiglu_backward(args);
  }
  void swiglu_bf16_forward(const SwigluBf16ForwardArgs& args, Stream&) override {
    cpu::swiglu_bf16_forward(args);
  }
  void swiglu_bf16_backward(const SwigluBf16BackwardArgs& args, Stream&) override {
    cpu::swiglu_bf16_backward(args);
  }
  void residual_forward(const ResidualForwardArgs& args, Stream&) override {
    cpu::residual_forward(args);
  }
  void residual_backward(const ResidualBackwardArgs& args, Stream&) override {
    cpu::residual_backward(args);
  }
  void rotary(const RotaryArgs& args, Stream&) override { cpu::rotary(args); }
  void embedding_forward(const EmbeddingForwardArgs& args, Stream&) override {
    cpu::embedding_forward(args);
  }
  void embedding_backward(const EmbeddingBackwardArgs& args, Stream&) override {
    cpu::embedding_backward(args);
  }
  void attention_forward(const AttentionForwardArgs& args, Stream&) override {
    cpu::attention_forward(args);
  }
  void attention_delta(const AttentionDeltaArgs& args, Stream&) override {
    cpu::attention_delta(args);
  }
  void attention_backward(const AttentionBackwardArgs& args, Stream&) override {
    cpu::attention_backward(args);
  }
  void cross_entropy(const CrossEntropyArgs& args, Stream&) override { cpu::cross_entropy(args); }
  void adamw(const AdamwArgs& args, Stream&) override { cpu::adamw(args); }
  void add(std::int64_t count, const float* x, float* y, Stream&) override {
    cpu::add(count, x, y);
  }
  void add_column_sums(std::int64_t rows, std::int64_t cols, const float* x, float* y,
                       Stream&) override {
    cpu::add_column_sums(rows, cols, x, y);
  }
  double sum_of_squares(std::int64_t count, const float* x, Stream&) override {
    return cpu::sum_of_squares(count, x);
  }
  void round_to_bf16(std::int64_t count, float* x, Stream&) override {
    cpu::round_to_bf16(count, x);
  }
  void to_bf16(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row,
               std::uint16_t* y, Stream&) override {
    cpu::convert_to_bf16(x, rows, cols, x_row, y);
  }
  void from_bf16(std::int64_t count, const std::uint16_t* x, float* y, Stream&) override {
    cpu::convert_from_bf16(x, 1, count, count, y);
  }
};

}  // namespace

Kernels& cpu_kernels() {
  static CpuKernels kernels;
  return kernels;
}

Backend cpu_backend() {
  return {cpu_device(), cpu_kernels(), cpu_device().stream()};
}

}  // namespace longspan::model
