/// `longspan inspect` of checkpoints and runs: what it shows, what --json holds, and its exit
/// status.
#include "launcher/inspect_checkpoint.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "io/checkpoint_reader.hpp"
#include "launcher/command.hpp"
#include "launcher/table.hpp"
#include "tests/io/checkpoint_files.hpp"
#include "tests/support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using namespace io::testing;
namespace fs = std::filesystem;

class InspectCheckpoint : public ::testing::Test {
 protected:
  std::string write(std::int64_t step) {
    auto tensors = test_tensors();
    return io::write_checkpoint(own_.file("run/checkpoints"), arrays_of(tensors), test_facts(step),
                                Communicator::self());
  }
  /// Status and standard output of the subcommand.
  std::pair<ExitStatus, std::string> command(const std::vector<std::string>& arguments) {
    ::testing::internal::CaptureStdout();
    ExitStatus status = ExitStatus::kFailed;
    std::string error;
    try {
      status = inspect_command(arguments);
    } catch (const Error& thrown) {
      status = thrown.status();
      error = thrown.what();
    }
    std::fflush(stdout);
    return {status, ::testing::internal::GetCapturedStdout() + error};
  }
  testing_support::TemporaryDirectory own_;
};

TEST_F(InspectCheckpoint, ShowsFactsAndWeights) {
  const CheckpointReport report = report_checkpoint(write(1234), false, "");
  EXPECT_EQ(report.status, ExitStatus::kDone);
  for (const char* part :
       {"1,234", "1,263,616", "2,485", "2.2500 (lowest of the last 2: 2.2500)",
        "data 1 x context 1 x tensor 1, 1 rank\n", "model/embedding.weight  [61, 40]  f32   9.8 kB",
        "optim/exp_avg", "optim ", "longspan test"})
    EXPECT_TRUE(contains(report.text, part)) << part << " is missing in\n" << report.text;
  EXPECT_FALSE(contains(report.text, "optim/half"));
  EXPECT_FALSE(contains(report.text, "NaN"));
}

TEST_F(InspectCheckpoint, OneTensorInFull) {
  const std::string path = write(1);
  const CheckpointReport report = report_checkpoint(path, false, "tiny");
  // 0.5 * (3 i + 3) for i = 0 to 4
  EXPECT_TRUE(contains(report.text, "first values of model/tiny: 1.5 3 4.5 6 7.5")) << report.text;
  EXPECT_TRUE(contains(report.text, "4.5  2.121")) << report.text;
  EXPECT_EQ(report.json["tensors"].size(), 1U);
  EXPECT_EQ(report.json["tensors"][0]["statistics"]["max"], 7.5);
  EXPECT_EQ(report.json["tensors"][0]["first_values"].size(), 5U);
  EXPECT_EQ(report_checkpoint(path, false, "norm").json["tensors"].size(), 2U);
  EXPECT_TRUE(
      contains(error_of([&] { report_checkpoint(path, false, "nrom.weight"); }, ExitStatus::kUsage),
               "no tensor with 'nrom.weight' in its name"));
}

TEST_F(InspectCheckpoint, VerifyCountsOrNamesDamage) {
  const std::string path = write(1);
  CheckpointReport report = report_checkpoint(path, true, "");
  EXPECT_TRUE(contains(report.text, "verified 6 blocks, 10.7 kB: every hash matches"))
      << report.text;
  EXPECT_EQ(report.json["verified"], true);
  EXPECT_TRUE(report.json["problems"].empty());
  std::uint64_t offset = 0;
  const io::CheckpointReader reader(path);
  for (const auto& tensor : reader.tensors())
    if (tensor.name == "model/tiny") offset = tensor.blocks.at(0).file_offset;
  flip_byte(path + "/shard-00000-of-00001.h5", offset + 2);
  for (const bool verify :
       {true, false}) {  // reading the weights for their statistics finds it too
    report = report_checkpoint(path, verify, "");
    EXPECT_EQ(report.status, ExitStatus::kDamaged);
    EXPECT_TRUE(contains(report.text, "DAMAGED: 1 problem\n")) << report.text;
    ASSERT_EQ(report.json["problems"].size(), 1U);
    EXPECT_EQ(report.json["problems"][0]["tensor"], "model/tiny");
  }
}

TEST_F(InspectCheckpoint, DivergenceIsCounted) {
  TestTensor tensor("model/w", DType::kF32, {4}, 0);
  const std::vector<float> values = {1, NAN, INFINITY, 2};
  tensor.array.data = const_cast<float*>(values.data());
  const auto report = report_checkpoint(
      io::write_checkpoint(own_.file("c"), {tensor.array}, test_facts(1), Communicator::self()),
      false, "");
  EXPECT_TRUE(contains(report.text, "1 NaN and 1 Inf")) << report.text;
}

TEST_F(InspectCheckpoint, ThePathMayNameAnythingOfTheRun) {
  const std::string one = write(1), two = write(2);
  const std::string run = own_.file("run");
  for (const std::string& path : {two, two + "/", two + "/index.h5",
                                  two + "/shard-00000-of-00001.h5", run + "/checkpoints/latest"}) {
    const auto [status, out] = command({path, "--json"});
    EXPECT_EQ(status, ExitStatus::kDone) << path;
    EXPECT_EQ(nlohmann::json::parse(out)["step"], 2) << path;
  }
  for (const std::string& path : {run, run + "/checkpoints"}) {
    const auto [status, out] = command({path, "--json"});
    EXPECT_EQ(status, ExitStatus::kDone) << path;
    const auto json = nlohmann::json::parse(out);
    EXPECT_EQ(json["checkpoints"].size(), 2U);
    EXPECT_EQ(json["checkpoints"][1]["latest"], true);
    EXPECT_EQ(json["newest"]["step"], 2);
  }
  fs::remove(two + "/shard-00000-of-00001.h5");
  const auto [status, out] = command({run});
  EXPECT_EQ(status, ExitStatus::kDamaged);
  EXPECT_TRUE(contains(out, "shard-00000-of-00001.h5: the shard is missing")) << out;
  EXPECT_TRUE(contains(out, "checkpoint " + one + "\n")) << out;
}

TEST_F(InspectCheckpoint, WrongPathsAreExplained) {
  auto [status, out] = command({own_.file("nothing")});
  EXPECT_EQ(status, ExitStatus::kUsage);
  EXPECT_TRUE(contains(out, "no such file or folder")) << out;
  std::tie(status, out) = command({own_.path()});
  EXPECT_EQ(status, ExitStatus::kUsage);
  EXPECT_TRUE(contains(out, "neither a checkpoint")) << out;
  fs::create_directories(own_.file("step-0000000007"));
  std::tie(status, out) = command({own_.file("step-0000000007")});
  EXPECT_EQ(status, ExitStatus::kDamaged);
  EXPECT_TRUE(contains(out, "it has no index.h5")) << out;
}

TEST(Table, AlignsAndLeavesEmptyColumnsOut) {
  Table table({{"name", Table::Align::kLeft}, {"n"}, {"none"}, {"x"}});
  table.add({"wörter", "7", "", "1.5"});
  table.add({"a", "1,000"});
  EXPECT_EQ(table.text(1), " name        n    x\n wörter      7  1.5\n a       1,000\n");
  EXPECT_EQ(short_number(0.019981), "0.01998");
  EXPECT_EQ(utc_text(1'000'000'000), "2001-09-09 01:46:40 UTC");
}

}  // namespace
}  // namespace longspan::launcher
