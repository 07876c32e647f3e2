// In the place of model/kernels/cuda/gemm.cpp: the CPU's matrix product stands for cuBLASLt's.
#include "emulator.hpp"
#include "model/kernels/cuda/cuda_kernels.hpp"

namespace longspan::model {

void CudaKernels::gemm(const GemmArgs& args, Stream&) {
  const ::cuda_emulator::DeviceAccess access;
  cpu_kernels().gemm(args, cpu_device().stream());
}

/// There is nothing to fuse with.
bool CudaKernels::fuses_products() const {
  return false;
}
void CudaKernels::gemm_gelu_forward(const GemmGeluArgs& args, Stream& stream) {
  Kernels::gemm_gelu_forward(args, stream);
}
void CudaKernels::gemm_gelu_backward(const GemmGeluBackwardArgs& args, Stream& stream) {
  Kernels::gemm_gelu_backward(args, stream);
}

}  // namespace longspan::model
