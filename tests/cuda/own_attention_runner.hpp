/// cuda::Attention with options, or another's dense blocks, of one's own, in the emulator that the
/// program is linked with.
#pragma once

#include <memory>
#include <utility>

#include "model/kernels/cuda/attention.hpp"
#include "model/kernels/cuda/attention_blocks.hpp"
#include "model/kernels/cuda/cuda_kernels.hpp"
#include "parallel/cuda/device.hpp"
#include "support/attention_runner.hpp"

namespace longspan::testing_support {

inline model::Backend linked_backend() {
  static cuda::CudaDevice device(0);
  static model::CudaKernels kernels(device);
  return {device, kernels, device.stream()};
}

class OwnAttentionRunner final : public DeviceAttentionRunner {
 public:
  explicit OwnAttentionRunner(model::cuda::AttentionOptions options)
      : DeviceAttentionRunner(linked_backend()), attention_(backend_.device, options) {}
  OwnAttentionRunner(std::unique_ptr<model::cuda::DenseAttention> dense,
                     model::cuda::AttentionOptions options = {})
      : DeviceAttentionRunner(linked_backend()),
        attention_(backend_.device, std::move(dense), options) {}

 protected:
  void run(const model::AttentionForwardArgs& args) override {
    attention_.forward(args, backend_.stream);
  }
  void run(const model::AttentionDeltaArgs& args) override {
    attention_.delta(args, backend_.stream);
  }
  void run(const model::AttentionBackwardArgs& args) override {
    attention_.backward(args, backend_.stream);
  }

 private:
  model::cuda::Attention attention_;
};

}  // namespace longspan::testing_support
