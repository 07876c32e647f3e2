// Hands every operation but attention and matrix products on to the functions of kernels_cuda.hpp.
#include "model/kernels/cuda/cuda_kernels.hpp"

#include "model/kernels/cuda/kernels_cuda.hpp"
#include "model/kernels/cuda/range.hpp"

namespace longspan::model {

void CudaKernels::norm_forward(const NormForwardArgs& args, Stream& stream) {
  const Range range("norm forward");
  cuda::norm_forward(args, stream);
}
void CudaKernels::residual_norm_forward(const ResidualNormArgs& args, Stream& stream) {
  const Range range("residual and norm forward");
  cuda::residual_norm_forward(args, stream);
}
void CudaKernels::norm_backward(const NormBackwardArgs& args, Stream& stream) {
  const Range range("norm backward");
  cuda::norm_backward(args, device_, stream);
}
void CudaKernels::gelu_forward(const GeluForwardArgs& args, Stream& stream) {
  const Range range("GELU forward");
  cuda::gelu_forward(args, stream);
}
void CudaKernels::gelu_bf16_forward(const GeluBf16ForwardArgs& args, Stream& stream) {
  const Range range("GELU forward");
  cuda::gelu_bf16_forward(args, stream);
}
void CudaKernels::gelu_backward(const GeluBackwardArgs& args, Stream& stream) {
  const Range range("GELU backward");
  cuda::gelu_backward(args, stream);
}
void CudaKernels::swiglu_forward(const SwigluForwardArgs& args, Stream& stream) {
  const Range range("SwiGLU forward");
  cuda::swiglu_forward(args, stream);
}
void CudaKernels::swiglu_backward(const SwigluBackwardArgs& args, Stream& stream) {
  const Range range("SwiGLU backward");
  cuda::swiglu_backward(args, stream);
}
void CudaKernels::residual_forward(const ResidualForwardArgs& args, Stream& stream) {
  const Range range("residual forward");
  cuda::residual_forward(args, stream);
}
void CudaKernels::residual_backward(const ResidualBackwardArgs& args, Stream& stream) {
  const Range range("residual backward");
  cuda::residual_backward(args, stream);
}
void CudaKernels::rotary(const RotaryArgs& args, Stream& stream) {
  const Range range("rotary positions");
  cuda::rotary(args, stream);
}
void CudaKernels::embedding_forward(const EmbeddingForwardArgs& args, Stream& stream) {
  const Range range("embedding forward");
  cuda::embedding_forward(args, stream);
}
void CudaKernels::embedding_backward(const EmbeddingBackwardArgs& args, Stream& stream) {
  const Range range("embedding backward");
  cuda::embedding_backward(args, device_, stream);
}
void CudaKernels::cross_entropy(const CrossEntropyArgs& args, Stream& stream) {
  const Range range("cross-entropy");
  cuda::cross_entropy(args, stream);
}
void CudaKernels::adamw(const AdamwArgs& args, Stream& stream) {
  const Range range("AdamW");
  cuda::adamw(args, stream);
}
void CudaKernels::add(std::int64_t count, const float* x, float* y, Stream& stream) {
  const Range range("add");
  cuda::add(count, x, y, stream);
}
void CudaKernels::add_rows(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row,
                           float* y, std::int64_t y_row, Stream& stream) {
  const Range range("add");
  cuda::add_rows(rows, cols, x, x_row, y, y_row, stream);
}
void CudaKernels::add_column_sums(std::int64_t rows, std::int64_t cols, const float* x, float* y,
                                  Stream& stream) {
  const Range range("column sums");
  cuda::add_column_sums(rows, cols, x, y, device_, stream);
}
double CudaKernels::sum_of_squares(std::int64_t count, const float* x, Stream& stream) {
  const Range range("sum of squares");
  return cuda::sum_of_squares(count, x, device_, stream);
}
void CudaKernels::round_to_bf16(std::int64_t count, float* x, Stream& stream) {
  const Range range("rounding to bf16");
  cuda::round_to_bf16(count, x, stream);
}
void CudaKernels::to_bf16(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row,
                          std::uint16_t* y, Stream& stream) {
  const Range range("rounding to bf16");
  cuda::to_bf16(rows, cols, x, x_row, y, cols, stream);
}
void CudaKernels::from_bf16(std::int64_t count, const std::uint16_t* x, float* y, Stream& stream) {
  const Range range("widening from bf16");
  cuda::from_bf16(count, x, y, stream);
}

}  // namespace longspan::model
