// CudaKernels' attention: a cuda::Attention, made at its first use.
#include "model/kernels/cuda/attention.hpp"
#include "model/kernels/cuda/cuda_kernels.hpp"

namespace longspan::model {

struct CudaAttentionState {
  explicit CudaAttentionState(Device& device) : attention(device) {}
  cuda::Attention attention;
};

namespace {

cuda::Attention& attention_of(std::shared_ptr<CudaAttentionState>& state, Device& device) {
  if (!state) state = std::make_shared<CudaAttentionState>(device);
  return state->attention;
}

}  // namespace

void CudaKernels::attention_forward(const AttentionForwardArgs& args, Stream& stream) {
  attention_of(attention_, device_).forward(args, stream);
}

void CudaKernels::attention_delta(const AttentionDeltaArgs& args, Stream& stream) {
  attention_of(attention_, device_).delta(args, stream);
}

void CudaKernels::attention_backward(const AttentionBackwardArgs& args, Stream& stream) {
  attention_of(attention_, device_).backward(args, stream);
}

}  // namespace longspan::model
