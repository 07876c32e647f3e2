// label: slow
// timeout: 240
/// The GPU's memory of a run: asked for once before the first step, as much as was planned, and
/// never in a step; a run that does not fit is refused before it trains. On the emulator.
#include "launcher/gpu_memory.hpp"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/emulated_training.hpp"
#include "support/process.hpp"

namespace longspan::launcher {
namespace {

using testing_support::longspan;
using testing_support::ProcessResult;
using Json = nlohmann::json;

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

class GpuMemory : public testing_support::EmulatedTraining {
 protected:
  ProcessResult train(const std::string& run, int ranks, const std::string& settings) const {
    return longspan(testing_support::launch_tiny(
        ranks, folder_.file("d.h5"), folder_.file(run),
        "--train.steps 3 --checkpoint.every 0 --run.device cuda --run.share-gpu on "
        "--run.communication staged " +
            settings));
  }
  Json plan_of(const std::string& run) const {
    std::ifstream file(folder_.file(run) + "/plan.json");
    return Json::parse(file);
  }
};

TEST_F(GpuMemory, TheDriverIsAskedOnceBeforeTheFirstStepAndNeverLater) {
  struct Case {
    int ranks;
    std::string settings;
    int pinned_in_first_step = 0;
  };
  const std::vector<Case> cases = {
      {1, "--train.validate-every 1 --checkpoint.every 1"},
      {1, "--train.validate-every 0 --memory.offload host --memory.keep block", 1},
      {1, "--train.validate-every 0 --memory.offload file --memory.keep block"},
      {2, "--train.validate-every 2 --mesh.context 2 --model.precision bf16"},
      {2, "--train.validate-every 0 --mesh.tensor 2 --data.pack documents"},
      {2, "--train.validate-every 0 --mesh.data 2 --optimizer.shard parameters"},
  };
  // A small board: what is not reserved is asked for in steps of 2 MiB.
  ::setenv("LONGSPAN_CUDA_EMULATOR_BYTES", std::to_string(128 * kMiB).c_str(), 1);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const std::string run = "run" + std::to_string(i);
    SCOPED_TRACE(cases[i].settings);
    const ProcessResult result = train(run, cases[i].ranks, cases[i].settings);
    ASSERT_EQ(result.status, 0) << result.err;
    const Json plan = plan_of(run), &gpu = plan.at("gpu_memory_bytes"),
               &calls = gpu.at("driver_calls");
    EXPECT_EQ(calls.at("before_steps").at("device"), 1);
    EXPECT_EQ(calls.at("first_step").at("device"), 0);
    EXPECT_EQ(calls.at("later").at("device"), 0);
    EXPECT_EQ(calls.at("first_step").at("pinned"), cases[i].pinned_in_first_step);
    EXPECT_EQ(calls.at("later").at("pinned"), 0);
    // With alignment and gaps it stays within the reservation, and gaps are no more than its part.
    const std::int64_t used = gpu.at("used"), peak = gpu.at("peak"), reserved = gpu.at("reserved");
    EXPECT_GE(used, peak);
    EXPECT_LE(used, peak + peak / 8);
    EXPECT_LE(used, reserved);
    EXPECT_LE(reserved, gpu.at("held").get<std::int64_t>());
    // The emulator's matrix products have no workspace.
    EXPECT_GT(gpu.at("kernels").at("peak"), 0);
    EXPECT_LE(gpu.at("kernels").at("peak").get<std::int64_t>(),
              gpu.at("kernels").at("predicted").get<std::int64_t>() - 32 * kMiB);
    // Beside what is predicted there are tokens, positions and documents: 4 bytes each. In bf16 the
    // CPU's rounded copies are predicted, here they are the kernels' memory.
    const Json& memory = plan.at("memory_per_rank_bytes");
    const std::int64_t predicted = memory.at("predicted"), allocated = memory.at("allocated");
    const bool bf16 = cases[i].settings.find("bf16") != std::string::npos;
    EXPECT_LE(allocated - predicted, 256 * 4 * 8);
    EXPECT_GE(allocated - predicted, bf16 ? -predicted / 20 : 0);
    EXPECT_NE(log_of(run).find("the driver was asked once before the first step, 0 in it, 0 later"),
              std::string::npos)
        << log_of(run);
  }
}

TEST_F(GpuMemory, WhatWaitsInAFileComesBackWithTheSameBits) {
  for (const char* offload : {"none", "file", "host"}) {
    const ProcessResult result =
        train(offload, 2,
              std::string("--train.validate-every 0 --mesh.context 2 --memory.keep block ") +
                  "--memory.offload " + offload);
    ASSERT_EQ(result.status, 0) << result.err;
  }
  ASSERT_EQ(losses("none").size(), 3u);
  EXPECT_EQ(losses("file"), losses("none"));
  EXPECT_EQ(losses("host"), losses("none"));
}

TEST_F(GpuMemory, ARunThatDoesNotFitIsRefusedInOneLineBeforeItTrains) {
  ::setenv("LONGSPAN_CUDA_EMULATOR_BYTES", std::to_string(38 * kMiB).c_str(), 1);
  const ProcessResult result = train("large", 1, "--train.validate-every 0 --memory.keep all");
  EXPECT_EQ(result.status, 2) << result.err;
  EXPECT_NE(result.err.find("CUDA emulator has 38.0 MiB free, this run needs "), std::string::npos)
      << result.err;
  EXPECT_NE(result.err.find("MiB of arrays and up to "), std::string::npos) << result.err;
  EXPECT_TRUE(losses("large").empty());
}

TEST_F(GpuMemory, KeepAutoLooksAtTheGpuNotAtTheNode) {
  const std::string settings = "--train.validate-every 0 --train.micro-batch 4 --memory.keep auto";
  ASSERT_EQ(train("roomy", 1, settings).status, 0);
  EXPECT_NE(log_of("roomy").find("(the GPU has 4096.0 MiB free, less "), std::string::npos)
      << log_of("roomy");
  EXPECT_NE(log_of("roomy").find("all in layers 0-1"), std::string::npos) << log_of("roomy");
  ::setenv("LONGSPAN_CUDA_EMULATOR_BYTES", std::to_string(45 * kMiB).c_str(), 1);
  const ProcessResult tight = train("tight", 1, settings);
  ASSERT_EQ(tight.status, 0) << tight.err;
  EXPECT_EQ(log_of("tight").find("all in layers 0-1"), std::string::npos) << log_of("tight");
  EXPECT_EQ(losses("tight"), losses("roomy"));
}

TEST_F(GpuMemory, RanksOnOneGpuShareWhatIsFree) {
  ASSERT_EQ(
      train("shared", 2, "--train.validate-every 0 --mesh.context 2 --memory.keep auto").status, 0);
  EXPECT_NE(log_of("shared").find("(the GPU has 2048.0 MiB free for each of the 2 ranks on it"),
            std::string::npos)
      << log_of("shared");
}

}  // namespace
}  // namespace longspan::launcher
