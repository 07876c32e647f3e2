// cuDNN's attention graphs as far as they go without a GPU: its heuristics choose engines for a
// described GPU, and these generate and compile their kernels. What fails then is the loading of
// the compiled kernel by the toolkit's stand-in for the driver, and nothing before that.
// label: slow
#include <gtest/gtest.h>

#if defined(LONGSPAN_CUDNN)
#include <dlfcn.h>

#include "model/kernels/cuda/cudnn_graph.cpp"  // part of the plug-in, which tests cannot link
#endif

namespace longspan {
namespace {

#if defined(LONGSPAN_CUDNN)
using namespace model::cuda;

constexpr const char* kLibraries = LONGSPAN_CUDA_LIBRARIES;

std::string described(int capability, int shared_memory) {
  return fmt::format(
      R"({{"maxGridSize":[2147483647,65535,65535],"maxBlockSize":[1024,1024,64],"cudaDeviceId":0,)"
      R"("deviceVer":{},"driverVer":13000,"isTccDriver":0,"deviceName":"described",)"
      R"("l2CacheSize":52428800,"maxCtasPerSM":32,"maxRegistersPerSM":65536,)"
      R"("maxSharedMemoryPerBlock":49152,"maxSharedMemoryPerBlockOptin":{},)"
      R"("maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,"memClockRateKHz":3201000,)"
      R"("multiProcessorCount":132,"pciDeviceId":0,"regsPerBlock":65536,)"
      R"("reservedSharedMemoryPerBlock":1024,"smClockRateKHz":1980000,"supportCoopLaunch":1,)"
      R"("totalGlobalMem":150000000000,"warpSize":32}})",
      capability, shared_memory);
}

class CudnnGraph : public testing::Test {
 protected:
  void SetUp() override {
    try {
      library_ =
          std::make_unique<CudnnLibrary>(fmt::format("{}/libcudnn.so.9", kLibraries).c_str());
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    if (!missing_driver().empty()) GTEST_SKIP() << missing_driver();
  }

  /// cuDNN asks for libcuda.so.1, and finds the stand-in once that is loaded. Empty: it is.
  static const std::string& missing_driver() {
    static const std::string reason = []() -> std::string {
      if (dlopen("libcuda.so.1", RTLD_NOW) != nullptr) return "a real driver is here";
      const std::string file = fmt::format("{}/stubs/libcuda.so", kLibraries);
      return dlopen(file.c_str(), RTLD_NOW) == nullptr ? dlerror() : "";
    }();
    return reason;
  }

  CudnnBlock block(std::int64_t tokens, std::int64_t heads, std::int64_t kv_heads,
                   std::int64_t head_size, bool causal) {
    CudnnBlock b;
    b.batch = 2, b.heads = heads, b.kv_heads = kv_heads, b.queries = b.keys = tokens;
    b.head_size = head_size, b.causal = causal;
    const auto strides = [&](std::int64_t all_heads, std::int64_t step) {
      return CudnnStrides{tokens * all_heads * head_size, step * head_size, all_heads * head_size};
    };
    b.q = b.dout = strides(8, 8 / heads);
    b.o = strides(heads, 1);
    b.kv = strides(kv_heads, 1);
    return b;
  }

  template <class Make>
  std::string outcome(Make make, const CudnnBlock& b, int capability = 900, int shared = 232448) {
    try {
      make(*library_, cudnn_target(*library_, described(capability, shared)), b);
      return "planned";
    } catch (const Error& error) {
      return error.what();
    }
  }
  static bool compiled(const std::string& outcome) {
    return outcome.find("cuLibraryLoadData returned error") != std::string::npos;
  }

  std::unique_ptr<CudnnLibrary> library_;
};

TEST_F(CudnnGraph, ForwardIsCompiledForGroupedHeadsAndCausalMasks) {
  const std::string text = outcome(cudnn_forward_plan, block(1000, 8, 2, 128, true));
  EXPECT_TRUE(compiled(text)) << text;
}

TEST_F(CudnnGraph, BackwardIsCompiledForCausalMasks) {
  const std::string text = outcome(cudnn_backward_plan, block(1000, 2, 2, 128, true));
  EXPECT_TRUE(compiled(text)) << text;
}

TEST_F(CudnnGraph, WindowsAreCompiled) {
  CudnnBlock b = block(8192, 8, 2, 128, true);
  b.window = 1024;
  std::string text = outcome(cudnn_forward_plan, b);
  EXPECT_TRUE(compiled(text)) << text;
  b = block(1000, 2, 2, 128, true);
  b.window = 300;
  text = outcome(cudnn_backward_plan, b);
  EXPECT_TRUE(compiled(text)) << text;
}

TEST_F(CudnnGraph, FullBlocksAreCompiledForA100) {
  std::string text = outcome(cudnn_forward_plan, block(8192, 8, 8, 64, false), 800, 166912);
  EXPECT_TRUE(compiled(text)) << text;
  text = outcome(cudnn_backward_plan, block(8192, 8, 8, 64, false), 800, 166912);
  EXPECT_TRUE(compiled(text)) << text;
}

/// A refusal reads as one, and comes from cuDNN's choice of engines.
TEST_F(CudnnGraph, RefusesWhatNoEngineServes) {
  const std::string text = outcome(cudnn_forward_plan, block(64, 8, 8, 12, false));
  EXPECT_FALSE(compiled(text)) << text;
  EXPECT_EQ(text.find("cuDNN"), 0u) << text;
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
}

TEST(CudnnLibrary, SaysWhatIsMissing) {
  try {
    CudnnLibrary library("/nowhere/libcudnn.so.9");
    ADD_FAILURE() << "opened a file that is not there";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("/nowhere/libcudnn.so.9"), std::string::npos)
        << error.what();
  }
  try {
    CudnnLibrary library("libc.so.6");
    ADD_FAILURE() << "took libc for cuDNN";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("cudnnBackendCreateDescriptor"), std::string::npos)
        << error.what();
  }
}
#else
TEST(CudnnGraph, NeedsTheToolkit) {
  GTEST_SKIP() << "no cuDNN headers or no CUDA toolkit here";
}
#endif

}  // namespace
}  // namespace longspan
