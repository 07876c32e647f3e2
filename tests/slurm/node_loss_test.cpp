// label: slow
// timeout: 600
// lock: slurm-cluster
/// Nodes go while a run is on them: the run ends with the same losses on others, with fewer ranks
/// too; and a node that was only cut off does not touch what is not its own any more.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <thread>

#include "slurm/cluster_fixture.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr int kSteps = 32;

class NodeLoss : public testing_support::ClusterTest {
 protected:
  void SetUp() override {
    ClusterTest::SetUp();
    if (IsSkipped()) return;
    const auto prepared = testing_support::longspan(
        {"prepare", "--kind", "text", "--output", file("data.h5"), LONGSPAN_SOURCE_DIR "/io"});
    ASSERT_EQ(prepared.status, 0) << prepared.err;
  }
  /// A job that trains in `run`. Every start has a log of its own, named by its first node, and
  /// leaves its exit status in <node>.status.
  static std::string script(const std::string& options, const std::string& run,
                            const std::string& settings) {
    return "#!/bin/bash\n#SBATCH --requeue --output=" + run + "-%N.log " + options +
           "\nsrun --mpi=pmix -K1 " + testing_support::longspan_path() + " train --run.directory " +
           run + " --run.threads 1 --data.path data.h5 --data.sequence-length 192 " +
           "--model.layers 2 --model.width 96 --model.heads 4 --train.global-batch 4 "
           "--train.steps " +
           std::to_string(kSteps) +
           " --optimizer.learning-rate 1e-4 --checkpoint.every 4 --checkpoint.keep 3 " + settings +
           "\nstatus=$?\necho $status > " + run + "-$SLURMD_NODENAME.status\nexit $status\n";
  }
  /// Steps and losses of a run, in the order they were written.
  std::vector<std::pair<std::int64_t, double>> losses(const std::string& run) const {
    std::vector<std::pair<std::int64_t, double>> all;
    std::ifstream lines(file(run + "/metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const auto j = nlohmann::json::parse(line);
      all.emplace_back(j["step"].get<std::int64_t>(), j["loss"].get<double>());
    }
    return all;
  }
  /// Every step once and in order; losses within `relative` of the other run's, 0 = the same bits.
  void expect_same_losses(const std::string& run, const std::string& as, double relative) const {
    const auto mine = losses(run), theirs = losses(as);
    ASSERT_EQ(mine.size(), static_cast<std::size_t>(kSteps));
    ASSERT_EQ(theirs.size(), mine.size());
    for (std::size_t i = 0; i < mine.size(); ++i) {
      EXPECT_EQ(mine[i].first, static_cast<std::int64_t>(i) + 1);
      EXPECT_LE(std::abs(mine[i].second - theirs[i].second), relative * theirs[i].second)
          << "step " << i + 1;
    }
    EXPECT_LT(mine.back().second, mine.front().second);
  }
  std::string step(const std::string& run, int number) const {
    std::ostringstream name;
    name << run << "/checkpoints/step-" << std::setw(10) << std::setfill('0') << number;
    return file(name.str());
  }
  /// Waits until the run has a checkpoint of this step or a later one.
  testing::AssertionResult saved(const std::string& run, int number) const {
    const auto end = std::chrono::steady_clock::now() + kSoon;
    while (std::chrono::steady_clock::now() < end) {
      for (int n = number; n <= kSteps; n += 4)
        if (fs::exists(step(run, n))) return testing::AssertionSuccess();
      std::this_thread::sleep_for(20ms);
    }
    return testing::AssertionFailure() << run << " has not saved step " << number;
  }
  /// All files of all checkpoints and where `latest` leads, with times of change: what is published
  /// again or removed shows.
  std::set<std::string> checkpoints(const std::string& run) const {
    std::set<std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(file(run + "/checkpoints")))
      all.insert(entry.path().string() + " " +
                 (entry.is_symlink()
                      ? fs::read_symlink(entry.path()).string()
                      : std::to_string(entry.last_write_time().time_since_epoch().count())));
    return all;
  }
  testing::AssertionResult idle(const std::string& nodes) const {
    std::string states;
    for (int tries = 0; tries < 300; ++tries) {
      states = head({"sinfo", "-h", "-p", "main", "-n", nodes, "-o", "%T"}).out;
      if (states == "idle\n") return testing::AssertionSuccess();
      std::this_thread::sleep_for(100ms);
    }
    return testing::AssertionFailure() << nodes << " are " << states;
  }
  /// At once, instead of after SlurmdTimeout.
  void declare_down(const std::string& name) const {
    const auto r = head({"scontrol", "update", "nodename=" + name, "state=down", "reason=test"});
    ASSERT_EQ(r.status, 0) << r.err;
  }
};

TEST_F(NodeLoss, AKilledNodeCostsNothingButTime) {
  const std::string mesh = "--mesh.data 1 --mesh.context 3";
  const std::string three = "--nodes=3 --ntasks-per-node=1";
  const std::string whole = submit(script(three, "whole", mesh));
  ASSERT_TRUE(reached(whole, {"COMPLETED"}));
  const std::string id = submit(script(three, "run", mesh));
  ASSERT_TRUE(saved("run", 8));
  node("kill-node", "n2");
  declare_down("n2");
  ASSERT_TRUE(reached(id, {"COMPLETED"}));
  const auto facts = job(id);
  EXPECT_EQ(facts.at("Restarts"), "1");
  EXPECT_EQ(facts.at("NodeList"), "n[1,3-4]");
  expect_same_losses("run", "whole", 0);

  // Started again with one node less, on another mesh: the same data, the same losses to rounding.
  ASSERT_TRUE(idle("n[1,3-4]"));
  const std::string elastic = mesh + " --mesh.elastic on";
  const std::string broken = submit(script(three + " --no-requeue", "elastic", elastic));
  ASSERT_TRUE(saved("elastic", 8));
  node("kill-node", "n3");
  declare_down("n3");
  ASSERT_TRUE(reached(broken, {"NODE_FAIL"}));
  const std::string fewer = submit(script("--nodes=2 --ntasks-per-node=1", "elastic", elastic));
  ASSERT_TRUE(reached(fewer, {"COMPLETED"}));
  expect_same_losses("elastic", "whole", 1e-5);
  EXPECT_NE(read(file("elastic/log.txt"))
                .find("mesh.elastic: 2 ranks: mesh.data=1, mesh.context=2 instead of 3"),
            std::string::npos)
      << read(file("elastic/log.txt"));
}

TEST_F(NodeLoss, ACutNodeThatComputesOnAndComesBackPublishesAndDeletesNothing) {
  const std::string id = submit(script("--nodes=1 --ntasks-per-node=2", "run", "--mesh.context 2"));
  ASSERT_TRUE(saved("run", 8));
  ASSERT_EQ(job(id).at("NodeList"), "n1");
  node("cut-node", "n1");
  // It computes on, and saves, as long as the run is its own; held before it could be done.
  ASSERT_TRUE(saved("run", 16));
  ASSERT_EQ(on("n1", {"sh", "-c", "kill -STOP $(pidof longspan)"}).status, 0);
  ASSERT_FALSE(fs::exists(step("run", kSteps))) << "too fast for this test";
  declare_down("n1");
  ASSERT_TRUE(says(file("run-n2.log"), "continuing from"));
  EXPECT_NE(read(file("run-n2.log")).find("restart 0 of Slurm job " + id), std::string::npos);
  ASSERT_TRUE(saved("run", 24));

  // Meanwhile the old one goes on, first beside its successor, then when that is done.
  ASSERT_EQ(on("n1", {"sh", "-c", "kill -CONT $(pidof longspan)"}).status, 0);
  ASSERT_TRUE(says(file("run-n1.status"), "\n"));
  EXPECT_EQ(read(file("run-n1.status")), "1\n");
  const std::string told = read(file("run-n1.log"));
  const std::size_t line = told.find("this run was replaced: ");
  ASSERT_NE(line, std::string::npos) << told;
  EXPECT_EQ(told.find("this run was replaced: ", line + 1), std::string::npos) << told;
  EXPECT_NE(told.find("restart 1 of Slurm job " + id + " of test"), std::string::npos) << told;
  ASSERT_TRUE(reached(id, {"COMPLETED"}));
  EXPECT_EQ(job(id).at("NodeList"), "n2");
  const auto before = checkpoints("run");
  EXPECT_EQ(fs::read_symlink(file("run/checkpoints/latest")).string(),
            fs::path(step("run", kSteps)).filename().string());
  node("restore-node", "n1");
  EXPECT_EQ(checkpoints("run"), before);

  const std::string whole =
      submit(script("--nodes=1 --ntasks-per-node=2", "whole", "--mesh.context 2"));
  ASSERT_TRUE(reached(whole, {"COMPLETED"}));
  expect_same_losses("run", "whole", 0);
}

}  // namespace
}  // namespace longspan
