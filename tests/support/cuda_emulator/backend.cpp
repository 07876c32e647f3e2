#include "model/kernels/cuda/cuda_kernels.hpp"
#include "parallel/cuda/device.hpp"

namespace longspan::testing_support {

model::Backend emulated_backend() {
  static auto* device = new cuda::CudaDevice(0);
  static auto* kernels = new model::CudaKernels(*device);
  return {*device, *kernels, device->stream()};
}

}  // namespace longspan::testing_support
