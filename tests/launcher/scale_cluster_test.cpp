// label: slow
// timeout: 300
// lock: slurm-cluster
/// A scaling study as jobs of a real Slurm cluster: one and two nodes, collected when they are
/// over.
#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "slurm/cluster_fixture.hpp"
#include "support/sample_text.hpp"

namespace longspan {
namespace {

using nlohmann::json;
using testing_support::longspan_path;

class ScaleCluster : public testing_support::ClusterTest {};

TEST_F(ScaleCluster, JobsAreSubmittedOnceAndCollected) {
  std::ofstream(file("text.txt")) << testing_support::sample_text(40000);
  const auto prepared = testing_support::longspan(
      {"prepare", "--kind", "text", "--output", file("data.h5"), file("text.txt")});
  ASSERT_EQ(prepared.status, 0) << prepared.err;
  std::ofstream(file("run.ini")) << "[model]\nlayers = 1\nwidth = 32\nheads = 2\n"
                                    "[data]\npath = data.h5\nsequence-length = 64\n"
                                    "[run]\nthreads = 1\n[train]\nglobal-batch = 2\n"
                                    "[slurm]\nranks-per-node = 1\ntime = 5\n";
  const auto begun =
      head({longspan_path(), "scale", "--config", "run.ini", "--output", "study", "--ranks", "1,2",
            "--mesh", "1xNx1", "--scheme", "ring", "--steps", "4", "--warmup", "1", "--submit"});
  EXPECT_EQ(begun.status, 75) << begun.out << begun.err;
  const std::vector<std::string> go_on = {longspan_path(), "scale", "--output", "study", "--json"};
  auto collected = head(go_on);
  const auto end = std::chrono::steady_clock::now() + kSoon + kSoon;
  while (collected.status == 75 && std::chrono::steady_clock::now() < end) {
    EXPECT_EQ(collected.err.find("submitted job"), std::string::npos) << collected.err;
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    collected = head(go_on);
  }
  ASSERT_EQ(collected.status, 0) << collected.out << collected.err;
  const json points = json::parse(collected.out)["points"];
  ASSERT_EQ(points.size(), 2u);
  for (const json& point : points) {
    EXPECT_EQ(point["state"], "done");
    EXPECT_EQ(point["nodes"], point["ranks"]);
    EXPECT_EQ(point["host"].get<std::string>().substr(0, 1), "n") << point["host"];
    EXPECT_EQ(point["context_sent_bytes"], point["context_formula_bytes"]);
  }
  EXPECT_GT(points[1]["context_sent_bytes"], 0);
  EXPECT_GT(points[1]["speedup"], 0);
}

}  // namespace
}  // namespace longspan
