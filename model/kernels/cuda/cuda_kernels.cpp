// Hands every operation but attention and matrix products on to the functions of kernels_cuda.hpp.
#include "model/kernels/cuda/cuda_kernels.hpp"

#include "model/kernels/cuda/kernels_cuda.hpp"

namespace longspan::model {

void CudaKernels::norm_forward(const NormForwardArgs& args, Stream& stream) {
  cuda::norm_forward(args, stream);
}
void CudaKernels::norm_backward(const NormBackwardArgs& args, Stream& stream) {
  cuda::norm_backward(args, device_, stream);
}
void CudaKernels::gelu_forward(const GeluForwardArgs& args, Stream& stream) {
  cuda::gelu_forward(args, stream);
}
void CudaKernels::gelu_backward(const GeluBackwardArgs& args, Stream& stream) {
  cuda::gelu_backward(args, stream);
}
void CudaKernels::swiglu_forward(const SwigluForwardArgs& args, Stream& stream) {
  cuda::swiglu_forward(args, stream);
}
void CudaKernels::swiglu_backward(const SwigluBackwardArgs& args, Stream& stream) {
  cuda::swiglu_backward(args, stream);
}
void CudaKernels::residual_forward(const ResidualForwardArgs& args, Stream& stream) {
  cuda::residual_forward(args, stream);
}
void CudaKernels::residual_backward(const ResidualBackwardArgs& args, Stream& stream) {
  cuda::residual_backward(args, stream);
}
void CudaKernels::rotary(const RotaryArgs& args, Stream& stream) {
  cuda::rotary(args, stream);
}
void CudaKernels::embedding_forward(const EmbeddingForwardArgs& args, Stream& stream) {
  cuda::embedding_forward(args, stream);
}
void CudaKernels::embedding_backward(const EmbeddingBackwardArgs& args, Stream& stream) {
  cuda::embedding_backward(args, device_, stream);
}
void CudaKernels::cross_entropy(const CrossEntropyArgs& args, Stream& stream) {
  cuda::cross_entropy(args, stream);
}
void CudaKernels::adamw(const AdamwArgs& args, Stream& stream) {
  cuda::adamw(args, stream);
}
void CudaKernels::add(std::int64_t count, const float* x, float* y, Stream& stream) {
  cuda::add(count, x, y, stream);
}
void CudaKernels::add_rows(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row,
                           float* y, std::int64_t y_row, Stream& stream) {
  cuda::add_rows(rows, cols, x, x_row, y, y_row, stream);
}
void CudaKernels::add_column_sums(std::int64_t rows, std::int64_t cols, const float* x, float* y,
                                  Stream& stream) {
  cuda::add_column_sums(rows, cols, x, y, device_, stream);
}
double CudaKernels::sum_of_squares(std::int64_t count, const float* x, Stream& stream) {
  return cuda::sum_of_squares(count, x, device_, stream);
}
void CudaKernels::round_to_bf16(std::int64_t count, float* x, Stream& stream) {
  cuda::round_to_bf16(count, x, stream);
}
void CudaKernels::to_bf16(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row,
                          std::uint16_t* y, Stream& stream) {
  cuda::to_bf16(rows, cols, x, x_row, y, cols, stream);
}
void CudaKernels::from_bf16(std::int64_t count, const std::uint16_t* x, float* y, Stream& stream) {
  cuda::from_bf16(count, x, y, stream);
}

}  // namespace longspan::model
