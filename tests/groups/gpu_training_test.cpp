// label: slow
// timeout: 400
/// Runs on the emulated GPU with several ranks: groups staged through the host and over (fake) NCCL
/// give the losses of the CPU on every kind of mesh, and memory.offload=host changes no bit.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/emulated_training.hpp"
#include "support/process.hpp"

namespace longspan {
namespace {

using testing_support::longspan;
using testing_support::ProcessResult;

class GpuTraining : public testing_support::EmulatedTraining {
 protected:
  /// The fake's messages touch device memory: it is the GPU here.
  static void use_fake_nccl() {
    ::setenv("LONGSPAN_CUDA_EMULATOR_NCCL", LONGSPAN_BINARY_DIR "/plugins/libnccl_fake.so", 1);
    ::setenv("LONGSPAN_CUDA_EMULATOR_PROTECT", "off", 1);
  }
  ProcessResult train(const std::string& run, int ranks, const std::string& settings) const {
    return longspan(testing_support::launch_tiny(
        ranks, folder_.file("d.h5"), folder_.file(run),
        "--train.steps 3 --train.global-batch 2 --train.validate-every 0 --checkpoint.every 0 "
        "--model.heads 4 --run.share-gpu on " +
            settings));
  }
  void expect_losses_of_the_cpu(const std::string& run) {
    const auto found = losses(run), expected = losses("cpu");
    ASSERT_EQ(expected.size(), 3u);
    ASSERT_EQ(found.size(), 3u) << run;
    for (std::size_t i = 0; i < found.size(); ++i)
      EXPECT_NEAR(found[i] / expected[i], 1.0, 1e-5) << run << ", step " << i + 1;
  }
};

const std::vector<std::pair<std::string, std::string>> kMeshes = {
    {"data", "--mesh.data 2"},
    {"shard", "--mesh.data 2 --optimizer.shard parameters"},
    {"ring", "--mesh.context 2 --attention.scheme ring"},
    {"ulysses", "--mesh.context 2 --attention.scheme ulysses"},
    {"tensor", "--mesh.tensor 2"}};

TEST_F(GpuTraining, EveryMeshHasTheLossesOfTheCpu) {
  ASSERT_EQ(train("cpu", 1, "--run.device cpu").status, 0);
  for (const std::string communication : {"staged", "nccl"}) {
    if (communication == "nccl") use_fake_nccl();
    for (const auto& [name, mesh] : kMeshes) {
      const std::string run = communication + "-" + name;
      const auto r =
          train(run, 2, mesh + " --run.device cuda --run.communication " + communication);
      ASSERT_EQ(r.status, 0) << run << r.err;
      expect_losses_of_the_cpu(run);
      EXPECT_NE(log_of(run).find(communication == "nccl" ? "groups over NCCL 2.28.9"
                                                         : "groups over MPI through the host"),
                std::string::npos)
          << log_of(run);
    }
  }
}

TEST_F(GpuTraining, WithoutNcclAutoIsStagedAndNcclIsOneError) {
  const std::string cuda = "--mesh.data 2 --run.device cuda ";
  auto r = train("auto", 2, cuda);
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(log_of("auto").find("groups over MPI through the host (the emulator has no libnccl"),
            std::string::npos);
  r = train("nccl", 2, cuda + "--run.communication nccl");
  EXPECT_EQ(r.status, 1);
  EXPECT_NE(r.err.find("run.communication=nccl: the emulator has no libnccl.so.2: install NCCL "
                       "where the loader looks (LD_LIBRARY_PATH), or set "
                       "run.communication=staged"),
            std::string::npos)
      << r.err;
  use_fake_nccl();
  ASSERT_EQ(train("fake", 2, cuda).status, 0);
  EXPECT_NE(log_of("fake").find("groups over NCCL 2.28.9"), std::string::npos);
}

TEST_F(GpuTraining, AFailureOfNcclEndsTheRunWithItsCall) {
  use_fake_nccl();
  ::setenv("LONGSPAN_FAKE_NCCL_ERROR_FROM_CALL", "1", 1);
  const auto r = train("fails", 2, "--mesh.data 2 --run.device cuda --run.communication nccl");
  EXPECT_EQ(r.status, 1);
  EXPECT_NE(r.err.find("NCCL: all_reduce 2 of group replicas (ranks 0-1)"), std::string::npos)
      << r.err;
  EXPECT_NE(r.err.find("remote process exited or there was a network error"), std::string::npos)
      << r.err;
}

TEST_F(GpuTraining, OffloadToTheHostChangesNoBit) {
  for (const std::string keep : {"all", "attention", "block"}) {
    const std::string settings = "--run.device cuda --memory.keep " + keep;
    ASSERT_EQ(train(keep, 1, settings).status, 0);
    const auto r = train(keep + "-host", 1, settings + " --memory.offload host");
    ASSERT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(losses(keep), losses(keep + "-host"));
    EXPECT_EQ(losses(keep).size(), 3u);
  }
  const auto r = train("cpu", 1, "--run.device cpu --memory.offload host");
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(
      (r.out + log_of("cpu")).find("on the CPU block inputs are in the host's memory already"),
      std::string::npos)
      << r.out;
  ASSERT_EQ(train("cpu-none", 1, "--run.device cpu").status, 0);
  EXPECT_EQ(losses("cpu"), losses("cpu-none"));
}

}  // namespace
}  // namespace longspan
