#pragma once
#include <memory>
#include <string>
#include "model/kernels/attention.hpp"
#include "parallel/device.hpp"
namespace longspan::model::cuda {
class CudnnAttention {
 public:
  static std::unique_ptr<CudnnAttention> open(Device&, std::string& reason) { reason.assign(1, (char)120); return nullptr; }
  bool forward(const AttentionForwardArgs&, Stream&) { return false; }
  bool backward(const AttentionBackwardArgs&, Stream&) { return false; }
  std::string description() const { return ""; }
};
}  // namespace longspan::model::cuda
