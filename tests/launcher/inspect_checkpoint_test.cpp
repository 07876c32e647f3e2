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
  const CheckpointReport report = report_checkpoint(write(1234), {});
  EXPECT_EQ(report.status, ExitStatus::kDone);
  for (const char* part :
       {"1,234", "1,263,616", "2,485", "2.2500 (lowest of the last 2: 2.2500)",
        "data 1 x context 1 x tensor 1, 1 rank\n", "longspan test", "[model]  layers=2",
        "model/  3 tensors, 2,485 elements, f32, 9.9 kB\n",
        "embedding.weight  [61, 40]    f32   9.8 kB       1\n",
        "norm.weight       [40]        f32    160 B       1  exp_avg f32\n",
        "optim/exp_avg/  1 tensor, 40 elements, f32, 160 B: beside their weights\n",
        "rng/  1 tensor, 9 elements, u64, 72 B\n"})
    EXPECT_TRUE(contains(report.text, part)) << part << " is missing in\n" << report.text;
  EXPECT_FALSE(contains(report.text, "mean")) << "only metadata are read\n" << report.text;
  EXPECT_FALSE(report.json["tensors"][0].contains("statistics"));
  EXPECT_EQ(report.json["settings"]["model.layers"], "2");
  EXPECT_FALSE(contains(report.text, "\033"));
  EXPECT_FALSE(contains(report.text, "NaN"));
}

TEST_F(InspectCheckpoint, StatisticsOfAllWhenAskedFor) {
  const CheckpointReport report = report_checkpoint(write(1), {.stats = true});
  EXPECT_EQ(report.status, ExitStatus::kDone);
  for (const auto& tensor : report.json["tensors"])
    EXPECT_EQ(tensor["statistics"]["count"], tensor["elements"]) << tensor;
  EXPECT_TRUE(contains(report.text, "exp_avg norm")) << report.text;
  EXPECT_TRUE(contains(report_checkpoint(write(2), {.style = Style(true)}).text, "\033[1m"));
}

/// Layers that are alike share a line, with the statistics of all their elements.
TEST_F(InspectCheckpoint, LayersAreFolded) {
  std::vector<TestTensor> tensors;
  for (int layer = 0; layer < 3; ++layer)
    tensors.emplace_back(fmt::format("model/blocks.{}.w", layer), DType::kF32, Shape{2}, 6 * layer);
  const std::string path =
      io::write_checkpoint(own_.file("c"), arrays_of(tensors), test_facts(1), Communicator::self());
  // 0 1.5 | 3 4.5 | 6 7.5: mean 3.75, standard deviation sqrt(6.5625), norm sqrt(123.75)
  const std::string text = report_checkpoint(path, {.stats = true}).text;
  EXPECT_TRUE(contains(
      text, "blocks.0-2.w     3 x  [2]    f32   24 B       1  3.75  2.562  11.12    0  7.5\n"))
      << text;
  const std::string unfolded = report_checkpoint(path, {.unfold = true}).text;
  EXPECT_TRUE(contains(unfolded, "blocks.1.w  [2]")) << unfolded;
}

TEST_F(InspectCheckpoint, OneTensorInFull) {
  const std::string path = write(1);
  const CheckpointReport report = report_checkpoint(path, {.tensor = "tiny"});
  // 0.5 * (3 i + 3) for i = 0 to 4
  EXPECT_TRUE(contains(report.text, "first values of model/tiny: 1.5 3 4.5 6 7.5")) << report.text;
  EXPECT_TRUE(contains(report.text, "4.5  2.121")) << report.text;
  EXPECT_EQ(report.json["tensors"].size(), 1U);
  EXPECT_EQ(report.json["tensors"][0]["statistics"]["max"], 7.5);
  EXPECT_EQ(report.json["tensors"][0]["first_values"].size(), 5U);
  EXPECT_EQ(report_checkpoint(path, {.tensor = "norm"}).json["tensors"].size(), 2U);
  EXPECT_TRUE(contains(
      error_of([&] { report_checkpoint(path, {.tensor = "nrom.weight"}); }, ExitStatus::kUsage),
      "no tensor with 'nrom.weight' in its name"));
}

TEST_F(InspectCheckpoint, VerifyCountsOrNamesDamage) {
  const std::string path = write(1);
  CheckpointReport report = report_checkpoint(path, {.verify = true});
  EXPECT_TRUE(contains(report.text, "verified 6 blocks, 10.7 kB: every hash matches"))
      << report.text;
  EXPECT_EQ(report.json["verified"], true);
  EXPECT_TRUE(report.json["problems"].empty());
  std::uint64_t offset = 0;
  const io::CheckpointReader reader(path);
  for (const auto& tensor : reader.tensors())
    if (tensor.name == "model/tiny") offset = tensor.blocks.at(0).file_offset;
  flip_byte(path + "/shard-00000-of-00001.h5", offset + 2);
  for (const bool verify : {true, false}) {  // reading the values for their statistics finds it too
    report = report_checkpoint(path, {.verify = verify, .stats = true});
    EXPECT_EQ(report.status, ExitStatus::kDamaged);
    EXPECT_TRUE(contains(report.text, "DAMAGED: 1 problem\n")) << report.text;
    ASSERT_EQ(report.json["problems"].size(), 1U);
    EXPECT_EQ(report.json["problems"][0]["tensor"], "model/tiny");
    EXPECT_TRUE(contains(report.text, "unreadable")) << report.text;
  }
}

TEST_F(InspectCheckpoint, DivergenceIsCounted) {
  TestTensor tensor("model/w", DType::kF32, {4}, 0);
  const std::vector<float> values = {1, NAN, INFINITY, 2};
  tensor.array.data = const_cast<float*>(values.data());
  const auto report = report_checkpoint(
      io::write_checkpoint(own_.file("c"), {tensor.array}, test_facts(1), Communicator::self()),
      {.stats = true});
  EXPECT_TRUE(contains(report.text, "1 NaN and 1 Inf")) << report.text;
  const std::vector<float> nothing(4, NAN);
  tensor.array.data = const_cast<float*>(nothing.data());
  const auto lost = report_checkpoint(
      io::write_checkpoint(own_.file("d"), {tensor.array}, test_facts(1), Communicator::self()),
      {.stats = true});
  EXPECT_TRUE(contains(lost.text, "NaN  NaN   NaN  NaN  NaN    4\n")) << lost.text;
  EXPECT_TRUE(lost.json["tensors"][0]["statistics"]["mean"].is_null());
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
