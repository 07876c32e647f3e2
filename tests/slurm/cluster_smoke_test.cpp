// label: slow
// timeout: 240
// lock: slurm-cluster
/// The test cluster itself: two ranks on two nodes train to the end from a batch script, with both
/// starters.

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
INSTANTIATE_TEST_SUITE_P(Starters, ClusterSmoke, testing::Values("srun --mpi=pmix -K1", "mpirun"),
                         [](const auto& p) { return p.param.substr(0, p.param.find(' ')); });

}  // namespace
}  // namespace longspan
