/// The operations' ranges, as a profiler sees them: it puts its functions into NVTX's table when
/// the first range begins.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "model/kernels/cuda/cuda_kernels.hpp"
#include "model/kernels/cuda/range.hpp"
#include "parallel/cuda/device.hpp"

#if defined(LONGSPAN_NVTX)
namespace {

std::vector<std::string> seen;

int push(const char* name) {
  seen.emplace_back(name);
  return 0;
}
int pop() {
  seen.emplace_back("end");
  return 0;
}

int attach(NvtxGetExportTableFunc_t tables) {
  const auto* callbacks = static_cast<const NvtxExportTableCallbacks*>(tables(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned int size = 0;
  if (callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &table, &size) == 0) return 0;
  *table[NVTX_CBID_CORE_RangePushA] = reinterpret_cast<NvtxFunctionPointer>(push);
  *table[NVTX_CBID_CORE_RangePop] = reinterpret_cast<NvtxFunctionPointer>(pop);
  return 1;
}

}  // namespace

namespace longspan::model {
namespace {

TEST(Nvtx, AProfilerSeesEveryOperationByItsName) {
  InitializeInjectionNvtx2_fnptr = attach;  // NVTX asks it when the first range begins
  cuda::CudaDevice device(0);
  CudaKernels kernels(device);
  Buffer<float> x(device, 64), y(device, 64);
  device.fill_zero(x.data(), 256, device.stream());
  device.fill_zero(y.data(), 256, device.stream());
  kernels.add(64, x.data(), y.data(), device.stream());
  kernels.gelu_forward({64, x.data(), y.data()}, device.stream());
  EXPECT_EQ(kernels.sum_of_squares(64, y.data(), device.stream()), 0.0);
  EXPECT_EQ(seen, (std::vector<std::string>{"add", "end", "GELU forward", "end", "sum of squares",
                                            "end"}));
}

}  // namespace
}  // namespace longspan::model
#else
TEST(Nvtx, AProfilerSeesEveryOperationByItsName) {
  GTEST_SKIP() << "built without NVTX's headers";
}
#endif
