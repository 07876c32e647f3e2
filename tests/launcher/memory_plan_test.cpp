// timeout: 120
#include "launcher/memory_plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "launcher/options.hpp"
#include "model/flops.hpp"
#include "parallel/error.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using model::Keep;
using testing_support::longspan;

RunConfig config(std::vector<std::string> more = {}) {
  more.insert(more.end(), {"--data.path", "x", "--model.layers", "6"});
  RunConfig c = parse_config(LONGSPAN_SOURCE_DIR "/configs/tiny.ini", more);
  resolve(c, 256);
  return c;
}

std::int64_t need(RunConfig c, Keep keep) {
  c.memory.keep = keep;
  return model::memory_estimate(c.model, c.memory, {c.train.micro_batch, 4096}).total();
}

std::string refusal(const RunConfig& c, const MemoryLimit& limit) {
  try {
    plan_memory(c, {c.train.micro_batch, 4096}, limit);
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), ExitStatus::kUsage);
    return e.what();
  }
  return "";
}

TEST(MemoryPlan, AutoFillsTheBudgetAndSaysWhy) {
  const RunConfig c = config({"--memory.keep", "auto", "--data.sequence-length", "4k"});
  const std::int64_t budget = (need(c, Keep::kAll) + need(c, Keep::kBlock)) / 2;
  const MemoryPlan chosen = plan_memory(c, {c.train.micro_batch, 4096}, {budget, "memory.budget"});
  const auto& keep = chosen.plan.keep_L;
  ASSERT_EQ(keep.size(), 6u);
  EXPECT_GE(std::ranges::count(keep, Keep::kAll), 2);
  EXPECT_LT(std::ranges::count(keep, Keep::kAll), 6);
  EXPECT_NE(chosen.reason.find(model::to_string(chosen.plan)), std::string::npos) << chosen.reason;
  EXPECT_NE(chosen.reason.find("(memory.budget); the cheapest mix that fits"), std::string::npos)
      << chosen.reason;
  EXPECT_EQ(chosen.reason.find('\n'), std::string::npos);

  const MemoryPlan roomy =
      plan_memory(c, {c.train.micro_batch, 4096}, {std::int64_t{1} << 40, "the node"});
  EXPECT_EQ(roomy.plan.keep_L, std::vector<Keep>(6, Keep::kAll));
  EXPECT_NE(roomy.reason.find("nothing has to be computed again"), std::string::npos);
}

TEST(MemoryPlan, AFixedModeIsKeptAndNeedsNoReason) {
  const RunConfig c = config({"--memory.keep", "attention", "--data.sequence-length", "4k"});
  const MemoryPlan fixed =
      plan_memory(c, {c.train.micro_batch, 4096}, {1, "the node"});  // no budget: no limit
  EXPECT_EQ(fixed.plan.keep_L, std::vector<Keep>(6, Keep::kAttention));
  EXPECT_EQ(fixed.reason, "");
}

TEST(MemoryPlan, ABudgetThatNothingMeetsNamesTheSmallestThatWould) {
  RunConfig c =
      config({"--memory.keep", "auto", "--data.sequence-length", "4k", "--memory.budget", "3m"});
  const std::string text = refusal(c, {c.memory.budget, "memory.budget"});
  const std::string before = "the smallest memory.budget that would do is ";
  ASSERT_NE(text.find(before), std::string::npos) << text;
  EXPECT_EQ(text.find("memory.budget=3145728: "), 0u) << text;
  EXPECT_NE(text.find("more mesh.context ranks"), std::string::npos) << text;
  EXPECT_EQ(text.find("train.micro-batch"), std::string::npos) << text;
  const std::int64_t named = std::stoll(text.substr(text.find(before) + before.size())) * 1048576;
  EXPECT_EQ(refusal(c, {named, "memory.budget"}), "");
  EXPECT_NE(refusal(c, {named - 1048576, "memory.budget"}), "");
}

TEST(MemoryPlan, WhatWouldHelpIsTrue) {
  RunConfig c = config({"--memory.keep", "auto", "--data.sequence-length", "4k", "--model.layers",
                        "40", "--memory.budget", "10m"});
  const std::string text = refusal(c, {c.memory.budget, "memory.budget"});
  const std::string before = "and memory.offload=file would do with ";
  ASSERT_NE(text.find(before), std::string::npos) << text;
  const std::int64_t named = std::stoll(text.substr(text.find(before) + before.size())) * 1048576;
  EXPECT_NE(refusal(c, {named, "memory.budget"}), "");
  c.memory.offload = model::Offload::kFile;
  EXPECT_EQ(refusal(c, {named, "memory.budget"}), "");
  EXPECT_NE(refusal(c, {named - 1048576, "memory.budget"}), "");
  c.train.micro_batch = 2;
  EXPECT_NE(refusal(c, {named, "memory.budget"}).find(" or train.micro-batch below 2 need less"),
            std::string::npos);
}

TEST(MemoryPlan, AFixedModeBeyondTheBudgetIsRefusedAndPointsToAuto) {
  RunConfig c = config({"--memory.keep", "all", "--data.sequence-length", "4k"});
  c.memory.budget = (need(c, Keep::kAll) + need(c, Keep::kBlock)) / 2;
  EXPECT_NE(refusal(c, {c.memory.budget, "memory.budget"}).find("memory.keep=auto finds a mix"),
            std::string::npos);
  c.memory.budget = need(c, Keep::kAll);
  EXPECT_EQ(refusal(c, {c.memory.budget, "memory.budget"}), "");
}

TEST(MemoryPlan, ThisNodeHasMemory) {
  const MemoryLimit node = node_memory();
  EXPECT_GT(node.bytes, std::int64_t{64} << 20);
  EXPECT_LT(node.bytes, std::int64_t{1} << 50);
  EXPECT_FALSE(node.source.empty());
}

class MemoryPlanRuns : public testing::Test {
 protected:
  void SetUp() override {
    const auto r = longspan({"prepare", "--kind", "text", "--output", folder_.file("d.h5"),
                             LONGSPAN_SOURCE_DIR "/model"});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  testing_support::ProcessResult train(const std::string& run, std::vector<std::string> more) {
    std::vector<std::string> all = {"launch",
                                    "--ranks",
                                    "2",
                                    "--config",
                                    LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                                    "--mesh.context",
                                    "2",
                                    "--run.threads",
                                    "1",
                                    "--data.path",
                                    folder_.file("d.h5"),
                                    "--run.directory",
                                    folder_.file(run),
                                    "--model.layers",
                                    "4",
                                    "--data.sequence-length",
                                    "2k",
                                    "--train.steps",
                                    "2",
                                    "--train.global-batch",
                                    "1"};
    all.insert(all.end(), more.begin(), more.end());
    return longspan(all);
  }
  testing_support::TemporaryDirectory folder_;
};

TEST_F(MemoryPlanRuns, TwoRanksTrainBySuchAPlan) {
  const auto r = train("auto", {"--memory.keep", "auto", "--memory.budget", "14m"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("memory.keep=auto: "), std::string::npos) << r.out;
  EXPECT_NE(r.out.find("of 14.0 MiB (memory.budget)"), std::string::npos) << r.out;
  EXPECT_NE(r.out.find(", all in layer"), std::string::npos) << r.out;
  const std::size_t at = r.out.find(" MiB predicted, ");
  ASSERT_NE(at, std::string::npos) << r.out;
  const double allocated = std::stod(r.out.substr(at + 16));
  EXPECT_LE(allocated, 14.0);
  EXPECT_GT(allocated, 0.9 * std::stod(r.out.substr(r.out.rfind(' ', at - 1) + 1))) << r.out;
}

TEST_F(MemoryPlanRuns, AnImpossibleBudgetIsOneErrorOfAllRanksBeforeTheRunStarts) {
  const auto r = train("small", {"--memory.keep", "auto", "--memory.budget", "1m"});
  EXPECT_EQ(r.status, 2) << r.err;
  EXPECT_EQ(testing_support::count_lines(r.err), 1) << r.err;
  EXPECT_NE(r.err.find("memory.budget=1048576: no mix of keep modes fits, the smallest"),
            std::string::npos)
      << r.err;
}

std::string numbers_of(const std::string& metrics) {
  std::ifstream file(metrics);
  std::string all;
  for (std::string line; std::getline(file, line);) {
    const auto j = nlohmann::json::parse(line);
    all += j["loss"].dump() + " " + j["grad_norm"].dump() + "\n";
  }
  return all;
}

TEST_F(MemoryPlanRuns, OffloadTrainsTheSameWithLessMemory) {
  std::vector<double> allocated;
  for (const char* offload : {"none", "file"}) {
    const auto r = train(offload, {"--memory.keep", "attention", "--memory.offload", offload,
                                   "--model.layers", "12"});
    ASSERT_EQ(r.status, 0) << r.err;
    allocated.push_back(std::stod(r.out.substr(r.out.find(" MiB predicted, ") + 16)));
  }
  const std::string expected = numbers_of(folder_.file("none/metrics.jsonl"));
  EXPECT_EQ(testing_support::count_lines(expected), 2);
  EXPECT_EQ(numbers_of(folder_.file("file/metrics.jsonl")), expected);
  // Ten of twelve layers' inputs, attention outputs and log-sum-exps: 1024 tokens of 130 floats.
  EXPECT_LT(allocated[1], allocated[0] - 9 * 1024 * 130 * 4 / 1048576.0);
  EXPECT_NE(numbers_of(folder_.file("file/metrics.jsonl")), "");
}

TEST_F(MemoryPlanRuns, AnOffloadDirectoryThatIsNotThereIsOneErrorOfAllRanks) {
  const auto r = train("gone", {"--memory.offload", "file", "--memory.offload-directory",
                                folder_.file("no such disk")});
  EXPECT_EQ(r.status, 1) << r.err;
  EXPECT_EQ(testing_support::count_lines(r.err), 1) << r.err;
  EXPECT_NE(
      r.err.find("memory.offload=file: cannot make a file in " + folder_.file("no such disk")),
      std::string::npos)
      << r.err;
}

TEST_F(MemoryPlanRuns, AFullDiskIsOneLineOfAllRanks) {
  // Files may grow to 24 MB, enough for everything but 30 MB of block inputs a rank. The window
  // keeps it quick where the file system cannot reserve and the run has to find out.
  const auto r = testing_support::run_process({"bash",
                                               "-c",
                                               "ulimit -f 24000; exec \"$0\" \"$@\"",
                                               testing_support::longspan_path(),
                                               "launch",
                                               "--ranks",
                                               "2",
                                               "--config",
                                               LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                                               "--mesh.context",
                                               "2",
                                               "--run.threads",
                                               "1",
                                               "--data.path",
                                               folder_.file("d.h5"),
                                               "--run.directory",
                                               folder_.file("full"),
                                               "--data.sequence-length",
                                               "16k",
                                               "--attention.window",
                                               "64",
                                               "--model.layers",
                                               "16",
                                               "--train.steps",
                                               "2",
                                               "--train.global-batch",
                                               "1",
                                               "--memory.keep",
                                               "block",
                                               "--memory.offload",
                                               "file"});
  EXPECT_EQ(r.status, 1) << r.err;
  EXPECT_EQ(testing_support::count_lines(r.err), 1) << r.err;
  EXPECT_NE(r.err.find("memory.offload=file: no room for "), std::string::npos) << r.err;
  EXPECT_NE(r.err.find(folder_.file("full")), std::string::npos) << r.err;
}

}  // namespace
}  // namespace longspan::launcher
