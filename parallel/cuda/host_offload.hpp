/// A GPU's memory that waits in page-locked memory of the host (memory.offload=host).
#pragma once

#include <memory>

#include "parallel/cuda/device.hpp"
#include "parallel/offload_stack.hpp"

namespace longspan::cuda {

/// Copies run on the device's copy stream, beside the compute stream: out behind what the compute
/// stream was given before push(), back ahead of what it is given after pop(). The host's memory
/// grows to what the stack holds at the most and is used again in every pass. `device` outlives it.
std::unique_ptr<OffloadStack> make_host_offload(CudaDevice& device);

}  // namespace longspan::cuda
