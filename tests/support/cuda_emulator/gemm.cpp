// In the place of model/kernels/cuda/gemm.cpp: the CPU's matrix product stands for cuBLASLt's.
#include "emulator.hpp"
#include "model/kernels/cuda/cuda_kernels.hpp"

namespace longspan::model {

void CudaKernels::gemm(const GemmArgs& args, Stream&) {
  const ::cuda_emulator::DeviceAccess access;
  cpu_kernels().gemm(args, cpu_device().stream());
}

}  // namespace longspan::model
