/// cuDNN's attention as a DenseAttention: plans are made at the first call of a shape and kept.
/// Read next: cudnn_graph.hpp.
#pragma once

#include <memory>
#include <string>

#include "model/kernels/cuda/attention_blocks.hpp"
#include "parallel/device.hpp"

namespace longspan::model::cuda {

/// Null where cuDNN is not to be had; `reason` then says why, in one line.
std::unique_ptr<DenseAttention> open_cudnn_attention(Device& device, std::string& reason);

}  // namespace longspan::model::cuda
