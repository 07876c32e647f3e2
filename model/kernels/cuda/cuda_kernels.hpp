/// The GPU's operations; gemm.cpp and attention*.cu define their own, cuda_kernels.cpp
/// hands the rest on to kernels_cuda.hpp. All pointers are device memory. One thread
/// at a time.
#pragma once

#include <memory>
#include <string>

#include "model/kernels/kernels.hpp"

namespace longspan::model {

/// What operations keep between calls; each is made at its first use, by the file that needs it.
struct CudaGemmState;
struct CudaAttentionState;

class CudaKernels final : public Kernels {
 public:
  /// `device` is a cuda::CudaDevice and outlives this. `deterministic`: the same bits in every run,
  /// also where that costs speed: no matrix product's algorithm is chosen by the clock.
  explicit CudaKernels(Device& device, bool deterministic = false)
      : device_(device), deterministic_(deterministic) {}

  void gemm(const GemmArgs& args, Stream& stream) override;
  void gemm_gelu_forward(const GemmGeluArgs& args, Stream& stream) override;
  void gemm_gelu_backward(const GemmGeluBackwardArgs& args, Stream& stream) override;
  bool fuses_products() const override;
  void norm_forward(const NormForwardArgs& args, Stream& stream) override;
  void residual_norm_forward(const ResidualNormArgs& args, Stream& stream) override;
  void norm_backward(const NormBackwardArgs& args, Stream& stream) override;
  void gelu_forward(const GeluForwardArgs& args, Stream& stream) override;
  void gelu_bf16_forward(const GeluBf16ForwardArgs& args, Stream& stream) override;
  void gelu_backward(const GeluBackwardArgs& args, Stream& stream) override;
  void swiglu_forward(const SwigluForwardArgs& args, Stream& stream) override;
  void swiglu_backward(const SwigluBackwardArgs& args, Stream& stream) override;
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

  /// Whose attention this is and why, one line.
  std::string description();

 private:
  Device& device_;
  bool deterministic_;
  std::shared_ptr<CudaGemmState> gemm_;
  std::shared_ptr<CudaAttentionState> attention_;
};

}  // namespace longspan::model
