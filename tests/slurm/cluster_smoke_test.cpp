// label: slow
// timeout: 240
// lock: slurm-cluster
/// The test cluster itself: two ranks on two nodes train to the end from a batch script, with both
/// starters; and doctor, in the same ways, knows where it is.
#include <nlohmann/json.hpp>

#include "slurm/cluster_fixture.hpp"

namespace longspan {
namespace {

class ClusterSmoke : public testing_support::ClusterTest,
                     public testing::WithParamInterface<std::string> {};

TEST_P(ClusterSmoke, TwoRanksOnTwoNodesTrain) {
  const auto prepared = testing_support::longspan(
      {"prepare", "--kind", "text", "--output", file("data.h5"), LONGSPAN_SOURCE_DIR "/slurm"});
  ASSERT_EQ(prepared.status, 0) << prepared.err;
  const std::string id = submit(
      "#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=1 --output=job.log\n" + GetParam() + " " +
      testing_support::longspan_path() +
      " train --run.directory run --data.path data.h5 --data.sequence-length 32 --model.layers 1 "
      "--model.width 32 --model.heads 2 --train.steps 3 --run.threads 1 --mesh.context 2\n");
  ASSERT_TRUE(reached(id, {"COMPLETED"})) << read(file("job.log"));
  const auto facts = job(id);
  EXPECT_EQ(facts.at("NodeList"), "n[1-2]");
  EXPECT_EQ(facts.at("ExitCode"), "0:0");
  EXPECT_EQ(testing_support::count_lines(read(file("run/metrics.jsonl"))), 3);
  EXPECT_NE(read(file("job.log")).find("2 ranks"), std::string::npos) << read(file("job.log"));
  EXPECT_NE(on("n2", {"hostname"}).out, on("n1", {"hostname"}).out);
}

/// What doctor says of a subject; null if nothing.
nlohmann::json finding(const nlohmann::json& report, const std::string& subject) {
  for (const auto& f : report.at("findings"))
    if (f.at("subject") == subject) return f;
  return nullptr;
}

TEST_P(ClusterSmoke, DoctorKnowsTheNodesTheirStarterAndTheirClocks) {
  const std::string doctor = testing_support::longspan_path() + " doctor --json --directory run";
  const std::string id =
      submit("#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=1 --output=job.log\n" + GetParam() +
             " " + doctor + " >all.json\necho $? >all.status\n" + doctor +
             " >alone.json\necho $? >alone.status\n");
  ASSERT_TRUE(reached(id, {"COMPLETED"})) << read(file("job.log"));
  for (const std::string which : {"all", "alone"}) {
    SCOPED_TRACE(which);
    const auto report = nlohmann::json::parse(read(file(which + ".json")), nullptr, false);
    ASSERT_TRUE(report.is_object()) << read(file(which + ".json")) << read(file("job.log"));
    const bool all = which == "all";
    EXPECT_EQ(report["ranks"], all ? 2 : 1);
    EXPECT_EQ(report["nodes"], all ? nlohmann::json({"n1", "n2"}) : nlohmann::json({"n1"}));
    // A core that the machine's other programs use is a slow rank: that may be bad here.
    bool bad = false;
    for (const auto& f : report["findings"]) bad = bad || f["health"] == "bad";
    EXPECT_EQ(read(file(which + ".status")), bad ? "1\n" : "0\n") << report.dump(1);
    EXPECT_EQ(finding(report, "this job")["found"], id + " on n[1-2], restart 0");
    EXPECT_EQ(finding(report, "srun")["health"], "ok") << report.dump(1);
    EXPECT_EQ(finding(report, "commands")["found"].get<std::string>() + "\n",
              head({"sbatch", "--version"}).out);
    EXPECT_EQ(finding(report, "clocks").is_null(), !all);
    if (all) {
      EXPECT_EQ(finding(report, "clocks")["health"], "ok");
      EXPECT_EQ(finding(report, "shared")["health"], "ok");
    } else {
      EXPECT_NE(finding(report, "ranks")["found"].dump().find("2 tasks in the job, one rank here"),
                std::string::npos)
          << report.dump(1);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Starters, ClusterSmoke, testing::Values("srun --mpi=pmix -K1", "mpirun"),
                         [](const auto& p) { return p.param.substr(0, p.param.find(' ')); });

}  // namespace
}  // namespace longspan
