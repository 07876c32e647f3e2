// Operations that no file defines yet say so. To be deleted when all are there.
#include "model/kernels/cuda/cuda_kernels.hpp"
#include "parallel/error.hpp"

namespace longspan::model {

__attribute__((weak)) void CudaKernels::gemm(const GemmArgs&, Stream&) {
  fail("the GPU has no gemm yet");
}
__attribute__((weak)) void CudaKernels::norm_forward(const NormForwardArgs&, Stream&) {
  fail("the GPU has no norm_forward yet");
}
__attribute__((weak)) void CudaKernels::norm_backward(const NormBackwardArgs&, Stream&) {
  fail("the GPU has no norm_backward yet");
}
__attribute__((weak)) void CudaKernels::gelu_forward(const GeluForwardArgs&, Stream&) {
  fail("the GPU has no gelu_forward yet");
}
__attribute__((weak)) void CudaKernels::gelu_backward(const GeluBackwardArgs&, Stream&) {
  fail("the GPU has no gelu_backward yet");
}
__attribute__((weak)) void CudaKernels::swiglu_forward(const SwigluForwardArgs&, Stream&) {
  fail("the GPU has no swiglu_forward yet");
}
__attribute__((weak)) void CudaKernels::swiglu_backward(const SwigluBackwardArgs&, Stream&) {
  fail("the GPU has no swiglu_backward yet");
}
__attribute__((weak)) void CudaKernels::residual_forward(const ResidualForwardArgs&, Stream&) {
  fail("the GPU has no residual_forward yet");
}
__attribute__((weak)) void CudaKernels::residual_backward(const ResidualBackwardArgs&, Stream&) {
  fail("the GPU has no residual_backward yet");
}
__attribute__((weak)) void CudaKernels::rotary(const RotaryArgs&, Stream&) {
  fail("the GPU has no rotary yet");
}
__attribute__((weak)) void CudaKernels::embedding_forward(const EmbeddingForwardArgs&, Stream&) {
  fail("the GPU has no embedding_forward yet");
}
__attribute__((weak)) void CudaKernels::embedding_backward(const EmbeddingBackwardArgs&, Stream&) {
  fail("the GPU has no embedding_backward yet");
}
__attribute__((weak)) void CudaKernels::attention_forward(const AttentionForwardArgs&, Stream&) {
  fail("the GPU has no attention_forward yet");
}
__attribute__((weak)) void CudaKernels::attention_delta(const AttentionDeltaArgs&, Stream&) {
  fail("the GPU has no attention_delta yet");
}
__attribute__((weak)) void CudaKernels::attention_backward(const AttentionBackwardArgs&, Stream&) {
  fail("the GPU has no attention_backward yet");
}
__attribute__((weak)) void CudaKernels::cross_entropy(const CrossEntropyArgs&, Stream&) {
  fail("the GPU has no cross_entropy yet");
}
__attribute__((weak)) void CudaKernels::adamw(const AdamwArgs&, Stream&) {
  fail("the GPU has no adamw yet");
}
__attribute__((weak)) void CudaKernels::add_column_sums(std::int64_t, std::int64_t, const float*,
                                                        float*, Stream&) {
  fail("the GPU has no add_column_sums yet");
}
__attribute__((weak)) double CudaKernels::sum_of_squares(std::int64_t, const float*, Stream&) {
  fail("the GPU has no sum_of_squares yet");
}
__attribute__((weak)) void CudaKernels::round_to_bf16(std::int64_t, float*, Stream&) {
  fail("the GPU has no round_to_bf16 yet");
}
__attribute__((weak)) void CudaKernels::to_bf16(std::int64_t, std::int64_t, const float*,
                                                std::int64_t, std::uint16_t*, Stream&) {
  fail("the GPU has no to_bf16 yet");
}
__attribute__((weak)) void CudaKernels::from_bf16(std::int64_t, const std::uint16_t*, float*,
                                                  Stream&) {
  fail("the GPU has no from_bf16 yet");
}

}  // namespace longspan::model
