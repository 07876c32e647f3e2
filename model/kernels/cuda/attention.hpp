/// Attention on a CUDA device: own kernels in two forms, exact fp32 and, where
/// AttentionShape::bf16_operands allows and the head size is 64 or 128, bf16 on matrix units; and
/// cuDNN's where it is found and its few shapes are asked for. Contracts:
/// model/kernels/attention.hpp; here rows must also be aligned to 16 bytes. None communicates. Read
/// next: attention_params.cuh, attention_blocks.hpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "model/kernels/attention.hpp"
#include "parallel/device.hpp"

namespace longspan::model::cuda {

class DenseAttention;

struct AttentionOptions {
  /// Own kernels alone, whose every sum has an order that the shapes fix.
  bool deterministic = false;
  /// bf16 copies of the inputs may take this much; heads that do not fit are taken slice by slice.
  std::int64_t workspace_bytes = std::int64_t{1} << 30;
};

class Attention {
 public:
  explicit Attention(Device& device, AttentionOptions options = {});
  /// With another's dense blocks in cuDNN's place: for tests.
  Attention(Device& device, std::unique_ptr<DenseAttention> dense, AttentionOptions options = {});
  ~Attention();

  void forward(const AttentionForwardArgs& args, Stream& stream);
  void delta(const AttentionDeltaArgs& args, Stream& stream);
  void backward(const AttentionBackwardArgs& args, Stream& stream);

  /// One line for the log and `doctor`: "cuDNN 9.19.0" or "own kernels: ..." with the reason.
  std::string description() const;

 private:
  Device& device_;
  AttentionOptions options_;
  std::unique_ptr<DenseAttention> dense_;  // null: not to be used
  std::string reason_;                     // why it is not
};

}  // namespace longspan::model::cuda
