// label: slow
// timeout: 300
/// At its end a run says what was predicted and what came of it; plan says the same before. And
/// the calibration that the seconds are from.
#include "launcher/prediction.hpp"

#include <gtest/gtest.h>
#include <sched.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "launcher/calibrate.hpp"
#include "support/process.hpp"
#include "support/sample_text.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using nlohmann::json;
using testing_support::longspan;

json read(const std::string& path) {
  std::ifstream file(path);
  return json::parse(file);
}

/// A calibrated user's folder, made once for all tests: measuring takes seconds.
const std::string& calibrated_folder() {
  static const testing_support::TemporaryDirectory folder;
  static const bool made = [] {
    setenv("XDG_CONFIG_HOME", folder.path().c_str(), 1);
    const auto result = longspan({"doctor", "--calibrate"});
    EXPECT_EQ(result.status, 0) << result.err;
    EXPECT_NE(result.out.find(folder.file("longspan/local.ini")), std::string::npos) << result.out;
    return true;
  }();
  EXPECT_TRUE(made);
  return folder.path();
}

class Runs : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(folder_.file("text")) << testing_support::sample_text(200000);
    ASSERT_EQ(
        longspan({"prepare", "--kind", "text", "--output", data(), folder_.file("text")}).status,
        0);
  }
  std::string data() const { return folder_.file("d.h5"); }
  /// The run's plan.json and what it said.
  json train(int ranks, const std::vector<std::string>& settings, std::string* said = nullptr) {
    const std::string run = folder_.file("run" + std::to_string(++runs_));
    std::vector<std::string> arguments{"launch",
                                       "--ranks",
                                       std::to_string(ranks),
                                       "--config",
                                       LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                                       "--data.path",
                                       data(),
                                       "--run.directory",
                                       run,
                                       "--train.steps",
                                       "3",
                                       "--run.threads",
                                       "1"};
    arguments.insert(arguments.end(), settings.begin(), settings.end());
    const auto result = longspan(arguments);
    EXPECT_EQ(result.status, 0) << result.out << result.err;
    if (said != nullptr) *said = result.out;
    return read(run + "/plan.json");
  }
  testing_support::TemporaryDirectory folder_;
  int runs_ = 0;
};

TEST_F(Runs, PlanNamesTheBytesThatTheRunPredicts) {
  calibrated_folder();
  const std::vector<std::vector<std::string>> cases = {
      {"1"},
      {"2", "--mesh.context", "2", "--memory.keep", "attention"},
      {"2", "--mesh.tensor", "2", "--memory.keep", "block"},
      {"2", "--mesh.data", "2", "--optimizer.shard", "parameters", "--model.precision", "bf16"},
      {"2", "--mesh.context", "2", "--attention.scheme", "ulysses", "--optimizer.shard", "states",
       "--checkpoint.every", "2"}};
  for (const auto& one : cases) {
    const std::vector<std::string> settings(one.begin() + 1, one.end());
    const json run = train(std::stoi(one[0]), settings);
    std::vector<std::string> arguments{
        "plan",          "--json", "--config",         LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
        "--machine",     "local",  "--ranks-per-node", one[0],
        "--data.path",   data(),   "--train.steps",    "3",
        "--run.threads", "1"};
    arguments.insert(arguments.end(), settings.begin(), settings.end());
    const auto result = longspan(arguments);
    ASSERT_EQ(result.status, 0) << result.err;
    const json planned = json::parse(result.out);
    EXPECT_EQ(planned["memory"]["arrays"], run["memory_per_rank_bytes"]["predicted"]) << one.back();
    EXPECT_EQ(planned["memory"], [&] {
      json kinds = run["memory"];
      kinds["arrays"] = run["memory_per_rank_bytes"]["predicted"];
      return kinds;
    }());
    const double predicted = run["memory_per_rank_bytes"]["predicted"],
                 allocated = run["memory_per_rank_bytes"]["allocated"];
    EXPECT_NEAR(predicted / allocated, 1, 0.05) << one.back();
    EXPECT_NEAR(
        planned["step_seconds"].get<double>() - planned["seconds"]["checkpoint"].get<double>(),
        run["step_seconds"]["predicted"].get<double>(), 1e-9);
    EXPECT_GT(run["step_seconds"]["measured"].get<double>(), 0);
    EXPECT_EQ(run["steps"], 3);
  }
}

TEST_F(Runs, WithoutACalibrationTheSecondsAreNotGuessed) {
  calibrated_folder();
  const testing_support::TemporaryDirectory empty;
  const char* before = std::getenv("XDG_CONFIG_HOME");
  const std::string kept = before == nullptr ? "" : before;
  setenv("XDG_CONFIG_HOME", empty.path().c_str(), 1);
  std::string said;
  const json run = train(1, {}, &said);
  EXPECT_TRUE(run["step_seconds"]["predicted"].is_null());
  EXPECT_NE(said.find("step time was not predicted: there is no calibration of this machine"),
            std::string::npos)
      << said;
  // A damaged one is named and does not end the run.
  std::filesystem::create_directories(empty.file("longspan"));
  std::ofstream(empty.file("longspan/local.ini")) << "[machine]\nname = local\n";
  const json damaged = train(1, {}, &said);
  EXPECT_TRUE(damaged["step_seconds"]["predicted"].is_null());
  EXPECT_NE(said.find("memory.bytes is missing"), std::string::npos) << said;
  setenv("XDG_CONFIG_HOME", kept.c_str(), 1);
}

TEST(Calibration, IsAMachineFileWithPlausibleRates) {
  const MachineDescription m = load_machine(calibrated_folder() + "/longspan/local.ini");
  EXPECT_EQ(m.name, "local");
  EXPECT_TRUE(m.shares_cores);
  EXPECT_GE(m.fp32.linear_flops.entries.size(), 3u);
  for (const auto& [width, rate] : m.fp32.linear_flops.entries) EXPECT_GT(rate, 1e8) << width;
  EXPECT_GT(m.fp32.attention_forward_flops.at(1024), 1e8);
  EXPECT_GT(m.fp32.attention_backward_flops.at(1024), 1e8);
  EXPECT_GT(m.pointwise_bandwidth, 1e8);
  EXPECT_GT(m.inside.bandwidth, 1e7);
  // What was written is what is read.
  const std::string text = machine_ini(m, "again");
  EXPECT_EQ(machine_ini(parse_machine(text, "again.ini"), "again"), text);
}

/// This process and those it starts, on the first core it may run on, till the end of the scope.
class OnOneCore {
 public:
  OnOneCore() {
    EXPECT_EQ(sched_getaffinity(0, sizeof before_, &before_), 0);
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++i)
      if (CPU_ISSET(i, &before_)) CPU_SET(i, &one);
    EXPECT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  }
  ~OnOneCore() { sched_setaffinity(0, sizeof before_, &before_); }
  OnOneCore(const OnOneCore&) = delete;
  OnOneCore& operator=(const OnOneCore&) = delete;

 private:
  cpu_set_t before_;
};

TEST(Calibration, UnderMpirunMeasuresLinksAndRanksThatShareACoreHaveHalfOfIt) {
  const testing_support::TemporaryDirectory folder;
  const OnOneCore core;
  const auto result =
      testing_support::run_process({"mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to",
                                    "none", "-n", "2", testing_support::longspan_path(), "doctor",
                                    "--calibrate", "--output", folder.file("two.ini")});
  ASSERT_EQ(result.status, 0) << result.err;
  const MachineDescription m = load_machine(folder.file("two.ini"));
  EXPECT_EQ(m.ranks_per_node, 2);
  EXPECT_EQ(m.cores, 1);
  EXPECT_GT(m.inside.latency, 0);
  EXPECT_EQ(m.for_rank(2, 0).pointwise_bandwidth, m.pointwise_bandwidth / 2);
  // Products of a fraction of a millisecond, which no other rank interrupts, against those that
  // take turns: it is the same core.
  EXPECT_LT(m.fp32.linear_flops.at(64), 1.5 * m.fp32.linear_flops.at(2048));
  EXPECT_LT(m.fp32.linear_flops.at(256), 1.5 * m.fp32.linear_flops.at(2048));
  EXPECT_LT(m.fp32.attention_forward_flops.at(256), 1.5 * m.fp32.attention_forward_flops.at(4096));
  const std::string text = machine_ini(m, "again");
  EXPECT_EQ(machine_ini(parse_machine(text, "again.ini"), "again"), text);
}

TEST(Calibration, FoldersThatCannotBeWrittenAreNamed) {
  const auto result = longspan({"doctor", "--calibrate", "--output", "/proc/none/local.ini"});
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("/proc/none"), std::string::npos) << result.err;
  EXPECT_EQ(longspan({"doctor", "--output", "x.ini"}).status, 2);
}

}  // namespace
}  // namespace longspan::launcher
