// label: slow
// timeout: 240
/// `longspan verify` with ranks that share an emulated GPU: the kernels, the groups that pass a
/// GPU's tensors through the host, and the layers on top keep the numerics contract together.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <nlohmann/json.hpp>

#include "launcher/verify.hpp"
#include "support/process.hpp"

namespace longspan::launcher {
namespace {

using testing_support::longspan;
using Json = nlohmann::json;

class GpuVerify : public testing::Test {
 protected:
  void SetUp() override {
    ::setenv("LONGSPAN_CUDA_PLUGIN", LONGSPAN_BINARY_DIR "/liblongspan_cuda_emulated.so", 1);
  }
  void TearDown() override {
    for (const char* name : {"LONGSPAN_CUDA_PLUGIN", "LONGSPAN_CUDA_EMULATOR_NCCL",
                             "LONGSPAN_CUDA_EMULATOR_PROTECT", "LONGSPAN_CUDA_EMULATOR_ERROR"})
      ::unsetenv(name);
  }
  void expect_proven(const std::string& communication) {
    const auto run =
        longspan({"verify", "--device", "cuda", "--communication", communication, "--ranks", "2",
                  "--quick", "--tokens", "33", "--steps", "2", "--json"});
    ASSERT_EQ(run.status, 0) << run.err << run.out;
    const Json json = Json::parse(run.out);
    EXPECT_EQ(json.at("verdict"), "ok");
    EXPECT_EQ(json.at("training_steps"), 2);
    const VerifyScope scope{33, Extent::kQuick, 2};
    EXPECT_EQ(json.at("attention").size(), attention_cases(2, scope).size());
    EXPECT_EQ(json.at("training").size(), training_cases(2, scope).size());
  }
};

TEST_F(GpuVerify, TwoRanksOnOneGpuKeepTheBoundsStaged) {
  expect_proven("staged");
}

/// With what stands for NCCL.
TEST_F(GpuVerify, TwoRanksOnOneGpuKeepTheBoundsOverNccl) {
  ::setenv("LONGSPAN_CUDA_EMULATOR_NCCL", LONGSPAN_BINARY_DIR "/plugins/libnccl_fake.so", 1);
  ::setenv("LONGSPAN_CUDA_EMULATOR_PROTECT", "off", 1);
  expect_proven("nccl");
}

TEST_F(GpuVerify, WithoutTheGpuNothingIsProven) {
  ::setenv("LONGSPAN_CUDA_EMULATOR_ERROR", "100", 1);
  const auto run = longspan({"verify", "--device", "cuda", "--ranks", "2", "--quick"});
  EXPECT_EQ(run.status, 1) << run.out;
  EXPECT_NE(run.err.find("run.device=cuda: no GPU here"), std::string::npos) << run.err;
}

}  // namespace
}  // namespace longspan::launcher
