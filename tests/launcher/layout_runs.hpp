/// Runs of one small training under any layout, for the tests that continue one layout's checkpoint
/// under another.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::testing_support {

struct Layout {
  int data, context, tensor;
  const char* shard;
  int ranks() const { return data * context * tensor; }
  std::string text() const {
    return std::to_string(data) + " x " + std::to_string(context) + " x " + std::to_string(tensor) +
           " " + shard;
  }
};

class LayoutRuns : public testing::Test {
 protected:
  void SetUp() override {
    const auto r = longspan({"prepare", "--kind", "text", "--output", folder_.file("d.h5"),
                             LONGSPAN_SOURCE_DIR "/model"});
    ASSERT_EQ(r.status, 0) << r.err;
  }

  /// Up to step `until` of `steps`; continues what is there.
  ProcessResult train(const std::string& run, const Layout& layout, int steps, int until,
                      const std::vector<std::string>& more = {}) const {
    std::vector<std::string> all = {"launch",
                                    "--ranks",
                                    std::to_string(layout.ranks()),
                                    "--config",
                                    LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                                    "--data.path",
                                    folder_.file("d.h5"),
                                    "--run.directory",
                                    folder_.file(run),
                                    "--data.sequence-length",
                                    "64",
                                    "--model.heads",
                                    "4",
                                    "--train.steps",
                                    std::to_string(steps),
                                    "--train.global-batch",
                                    "4",
                                    "--train.validate-every",
                                    "0",
                                    "--checkpoint.every",
                                    "0",
                                    "--mesh.data",
                                    std::to_string(layout.data),
                                    "--mesh.context",
                                    std::to_string(layout.context),
                                    "--mesh.tensor",
                                    std::to_string(layout.tensor),
                                    "--optimizer.shard",
                                    layout.shard};
    if (until < steps)
      all.insert(all.end(), {"--train.stop-after", std::to_string(until - steps_of(run))});
    all.insert(all.end(), more.begin(), more.end());
    return longspan(all);
  }
  std::vector<nlohmann::json> lines_of(const std::string& run) const {
    std::vector<nlohmann::json> all;
    std::ifstream lines(folder_.file(run) + "/metrics.jsonl");
    for (std::string line; std::getline(lines, line);) all.push_back(nlohmann::json::parse(line));
    return all;
  }
  int steps_of(const std::string& run) const { return static_cast<int>(lines_of(run).size()); }

  /// Same targets counted after every step, and losses within the bound of the numerics contract: a
  /// sample out of order moves a loss by a hundred times that, a lost moment by more.
  void expect_same_course(const std::string& run, const std::string& reference) const {
    const auto found = lines_of(run), expected = lines_of(reference);
    ASSERT_EQ(found.size(), expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
      EXPECT_EQ(found[i]["step"], expected[i]["step"]);
      EXPECT_EQ(found[i]["tokens"], expected[i]["tokens"]) << i;
      EXPECT_NEAR(found[i]["loss"].get<double>() / expected[i]["loss"].get<double>(), 1.0, 1e-5)
          << "step " << i + 1;
    }
  }

  TemporaryDirectory folder_;
};

}  // namespace longspan::testing_support
