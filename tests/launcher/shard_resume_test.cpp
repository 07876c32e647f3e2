// label: slow
// timeout: 120
/// optimizer.shard from the outside: saved under one mode and number of ranks, continued under any
/// other.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "support/process.hpp"
#include "support/sample_text.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

using testing_support::longspan;
using testing_support::ProcessResult;

class ShardResume : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new testing_support::TemporaryDirectory;
    std::ofstream(folder_->file("text.txt")) << testing_support::sample_text(350'000);
    const auto r = longspan({"prepare", "--kind", "text", "--output", folder_->file("d.h5"),
                             folder_->file("text.txt")});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  static void TearDownTestSuite() { delete folder_; }

  /// 8 steps of 4 sequences, or until train.stop-after.
  static ProcessResult launch(int ranks, int context, const std::string& run,
                              const std::string& shard, std::vector<std::string> more = {}) {
    std::vector<std::string> all = {
        "launch", "--ranks", std::to_string(ranks), "--config",
        LONGSPAN_SOURCE_DIR "/configs/tiny.ini", "--data.path", folder_->file("d.h5"),
        "--run.directory", folder_->file(run), "--data.sequence-length", "64", "--model.layers",
        "2", "--train.steps", "8", "--train.global-batch", "4",
        // One micro-batch a step on every mesh used here.
        "--train.micro-batch", std::to_string(4 * context / ranks), "--train.validate-every", "2",
        "--mesh.context", std::to_string(context), "--optimizer.shard", shard, "--checkpoint.every",
        "0"};
    all.insert(all.end(), more.begin(), more.end());
    return longspan(all);
  }

  /// The losses as written: equal texts are equal bits.
  static std::vector<std::string> losses(const std::string& run) {
    std::vector<std::string> result;
    std::ifstream lines(folder_->file(run) + "/metrics.jsonl");
    for (std::string line; std::getline(lines, line);) {
      const auto j = nlohmann::json::parse(line);
      result.push_back(j["loss"].dump());
      if (j.contains("validation_loss")) result.push_back(j["validation_loss"].dump());
    }
    return result;
  }

  static testing_support::TemporaryDirectory* folder_;
};
testing_support::TemporaryDirectory* ShardResume::folder_ = nullptr;

TEST_F(ShardResume, AnyModeContinuesAnyOtherBitForBit) {
  ASSERT_EQ(launch(2, 1, "whole", "none").status, 0);
  const auto expected = losses("whole");
  ASSERT_EQ(expected.size(), 8u + 4u);
  const std::vector<std::pair<std::string, std::string>> pairs = {{"none", "parameters"},
                                                                  {"parameters", "gradients"},
                                                                  {"gradients", "states"},
                                                                  {"states", "none"}};
  for (const auto& [first, then] : pairs) {
    const std::string run = first + "-" + then;
    const auto stopped = launch(2, 1, run, first, {"--train.stop-after", "3"});
    ASSERT_EQ(stopped.status, 75) << stopped.err << stopped.out;
    const auto r = launch(2, 1, run, then);
    ASSERT_EQ(r.status, 0) << r.err << r.out;
    EXPECT_NE(r.out.find("after step 3"), std::string::npos) << r.out;
    EXPECT_EQ(losses(run), expected) << run;
    const auto verified =
        longspan({"inspect", folder_->file(run) + "/checkpoints/latest", "--verify"});
    EXPECT_EQ(verified.status, 0) << verified.err << verified.out;
  }
}

TEST_F(ShardResume, AnyNumberOfRanksContinuesAnyOther) {
  ASSERT_EQ(launch(1, 1, "one", "none").status, 0);
  const auto expected = losses("one");
  struct Case {
    int ranks, context;
    const char* shard;
  };
  // Each continues what the one before it saved.
  const std::vector<Case> chain = {
      {3, 3, "parameters"}, {4, 2, "states"}, {2, 2, "gradients"}, {1, 1, "parameters"}};
  for (std::size_t i = 0; i < chain.size(); ++i) {
    const Case& c = chain[i];
    const auto r = launch(c.ranks, c.context, "chain", c.shard, {"--train.stop-after", "2"});
    ASSERT_EQ(r.status, i + 1 < chain.size() ? 75 : 0) << r.err << r.out;
  }
  const auto found = losses("chain");
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i)
    EXPECT_NEAR(std::stod(found[i]) / std::stod(expected[i]), 1.0, 1e-5) << i;
}

TEST_F(ShardResume, ALossThatIsNotANumberIsExplainedUnderEveryMode) {
  std::string first;
  for (const char* shard : {"none", "states", "gradients", "parameters"}) {
    const auto r = launch(2, 1, std::string("nan-") + shard, shard,
                          {"--optimizer.learning-rate", "1e30", "--optimizer.warmup-steps", "0",
                           "--optimizer.clip", "0"});
    EXPECT_EQ(r.status, 1) << r.out;
    const std::size_t at = r.err.find("first not finite: ");
    ASSERT_NE(at, std::string::npos) << r.err;
    const std::string culprit = r.err.substr(at, r.err.find(';', at) - at);
    EXPECT_EQ(culprit.find("nothing bad"), std::string::npos) << culprit;
    if (first.empty()) first = culprit;
    EXPECT_EQ(culprit, first) << shard;
  }
}

TEST_F(ShardResume, TheHeaderSaysWhatIsShared) {
  const auto r = launch(2, 2, "header", "gradients", {"--train.steps", "1"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("2 ranks share the optimizer states and gradients"), std::string::npos)
      << r.out;
}

}  // namespace
}  // namespace longspan
