// CudaKernels' attention: a cuda::Attention, made at its first use.
#include "model/kernels/cuda/attention.hpp"
#include "model/kernels/cuda/cuda_kernels.hpp"
#include "model/kernels/cuda/range.hpp"

namespace longspan::model {

struct CudaAttentionState {
  CudaAttentionState(Device& device, const cuda::AttentionOptions& options)
      : attention(device, options) {}
  cuda::Attention attention;
};

namespace {

cuda::Attention& attention_of(std::shared_ptr<CudaAttentionState>& state, Device& device,
                              bool deterministic) {
  if (!state) {
    cuda::AttentionOptions options;
    options.deterministic = deterministic;
    state = std::make_shared<CudaAttentionState>(device, options);
  }
  return state->attention;
}

}  // namespace

void CudaKernels::attention_forward(const AttentionForwardArgs& args, Stream& stream) {
  const Range range("attention forward");
  attention_of(attention_, device_, deterministic_).forward(args, stream);
}

void CudaKernels::attention_delta(const AttentionDeltaArgs& args, Stream& stream) {
  const Range range("attention delta");
  attention_of(attention_, device_, deterministic_).delta(args, stream);
}

void CudaKernels::attention_backward(const AttentionBackwardArgs& args, Stream& stream) {
  const Range range("attention backward");
  attention_of(attention_, device_, deterministic_).backward(args, stream);
}

std::string CudaKernels::description() {
  return "attention: " + attention_of(attention_, device_, deterministic_).description();
}

}  // namespace longspan::model
