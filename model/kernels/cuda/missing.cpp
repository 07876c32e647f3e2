// Operations that no file defines yet say so. To be deleted when all are there.
#include "model/kernels/cuda/cuda_kernels.hpp"
#include "parallel/error.hpp"

namespace longspan::model {

__attribute__((weak)) void CudaKernels::attention_forward(const AttentionForwardArgs&, Stream&) {
  fail("the GPU has no attention_forward yet");
}
__attribute__((weak)) void CudaKernels::attention_delta(const AttentionDeltaArgs&, Stream&) {
  fail("the GPU has no attention_delta yet");
}
__attribute__((weak)) void CudaKernels::attention_backward(const AttentionBackwardArgs&, Stream&) {
  fail("the GPU has no attention_backward yet");
}
__attribute__((weak)) std::string CudaKernels::description() {
  return "own kernels";
}

}  // namespace longspan::model
