// label: slow
// timeout: 120
/// One world, one program, one configuration, one dataset: each difference is refused in one line
/// that names it.
#include "launcher/world_check.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

namespace fs = std::filesystem;
using testing_support::ProcessResult;
using testing_support::run_process;

class World : public testing::Test {
 protected:
  std::string prepared(const std::string& name, const std::string& folder) const {
    const auto r =
        testing_support::longspan({"prepare", "--kind", "text", "--output", folder_.file(name),
                                   LONGSPAN_SOURCE_DIR "/" + folder});
    EXPECT_EQ(r.status, 0) << r.err;
    return folder_.file(name);
  }
  std::vector<std::string> train(const std::string& data) const {
    return {"train",
            "--config",
            LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
            "--data.path",
            data,
            "--run.directory",
            folder_.file("run"),
            "--train.steps",
            "1"};
  }
  /// One process that believes in these variables.
  ProcessResult alone(std::vector<std::string> variables, const std::string& data) const {
    std::vector<std::string> words = {"env"};
    words.insert(words.end(), variables.begin(), variables.end());
    words.push_back(testing_support::longspan_path());
    for (const auto& w : train(data)) words.push_back(w);
    return run_process(words);
  }
  /// Two ranks; `second` stands in front of rank 1's command, which is $0 "$@" of a shell.
  ProcessResult two(const std::string& second, const std::string& data) const {
    std::vector<std::string> words = {
        "mpirun",
        "--allow-run-as-root",
        "--oversubscribe",
        "--bind-to",
        "none",
        "--mca",
        "pml",
        "ob1",
        "--mca",
        "btl",
        "self,vader",
        "-n",
        "2",
        "sh",
        "-c",
        "if [ $OMPI_COMM_WORLD_RANK = 1 ]; then " + second + "; fi; exec \"$0\" \"$@\"",
        testing_support::longspan_path()};
    for (const auto& w : train(data)) words.push_back(w);
    return run_process(words);
  }
  static int lines_of_ours(const std::string& text) {
    int count = 0;
    for (std::size_t at = text.find("longspan: "); at != std::string::npos;
         at = text.find("longspan: ", at + 1))
      ++count;
    return count;
  }

  testing_support::TemporaryDirectory folder_;
};

TEST_F(World, SeveralWorldsOfOneAreRefusedByOneOfThem) {
  const std::string data = prepared("d.h5", "slurm");
  const std::vector<std::vector<std::string>> launchers = {
      // srun with --mpi=none, and with a plugin that this MPI cannot use
      {"SLURM_STEP_ID=0", "SLURM_STEP_NUM_TASKS=4", "SLURM_PROCID="},
      {"SLURM_STEP_ID=0", "SLURM_NTASKS=4", "PMIX_RANK=0", "SLURM_PROCID="},
      {"PMI_SIZE=4", "PMI_RANK="},
  };
  for (auto variables : launchers) {
    const std::string last = variables.back();
    for (const std::string rank : {"0", "3"}) {
      variables.back() = last + rank;
      const auto r = alone(variables, data);
      EXPECT_EQ(r.status, 2) << last << rank << r.out << r.err;
      if (rank != "0") {
        EXPECT_EQ(r.err, "") << last;
        continue;
      }
      EXPECT_EQ(lines_of_ours(r.err), 1) << r.err;
      EXPECT_NE(r.err.find("has started 4 ranks but MPI"), std::string::npos) << r.err;
      EXPECT_NE(r.err.find("--mpi=pmix"), std::string::npos) << r.err;
    }
  }
  EXPECT_FALSE(fs::exists(folder_.file("run"))) << "a refused run leaves nothing";
}

TEST_F(World, AnAllocationAloneStartsNothing) {
  const std::string data = prepared("d.h5", "slurm");
  // What sbatch and salloc set, and a step of one task.
  EXPECT_EQ(alone({"SLURM_JOB_ID=7", "SLURM_NTASKS=4", "SLURM_PROCID=0"}, data).status, 0);
  EXPECT_EQ(alone({"SLURM_STEP_ID=0", "SLURM_STEP_NUM_TASKS=1", "SLURM_PROCID=0"}, data).status, 0);
}

TEST_F(World, MpirunInAnAllocationIsAskedBeforeItsDaemonsStep) {
  const slurm::LaunchedWorld mpirun{slurm::Launcher::kMpirun, "mpirun", 2, 0, true};
  EXPECT_EQ(world_problem(mpirun, 2), "");
  EXPECT_NE(world_problem(mpirun, 1).find("mpirun has started 2 ranks but MPI sees this one alone"),
            std::string::npos);
  const std::string data = prepared("d.h5", "slurm");
  const auto r = two("export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0", data);
  EXPECT_EQ(r.status, 0) << r.err;
}

TEST_F(World, ADifferentSettingIsNamedWithBothValues) {
  const std::string data = prepared("d.h5", "slurm");
  const auto r = two("set -- \"$@\" --optimizer.clip 0.25 --run.seed 9", data);
  EXPECT_EQ(r.status, 2) << r.err;
  EXPECT_NE(r.err.find("longspan: rank 1 (" + node_name() + ") differs from rank 0: run.seed=9"),
            std::string::npos)
      << r.err;
  EXPECT_NE(r.err.find("optimizer.clip=0.25 (rank 0: 1)"), std::string::npos) << r.err;
  EXPECT_EQ(lines_of_ours(r.err), 1) << r.err;

  // The watchdog begins before settings are compared.
  const auto off = two("set -- \"$@\" --run.hang-timeout off", data);
  EXPECT_EQ(off.status, 2) << off.err;
  EXPECT_NE(off.err.find("differs from rank 0: run.hang-timeout=off"), std::string::npos)
      << off.err;
}

TEST_F(World, ADifferentDatasetAtTheSamePathIsNamed) {
  const std::string data = prepared("d.h5", "slurm"), other = prepared("e.h5", "io");
  // Each node has a file of its own at the same path: here a link that each rank sees differently.
  fs::create_directory(folder_.file("0")), fs::create_directory(folder_.file("1"));
  fs::copy(data, folder_.file("0/d.h5")), fs::copy(other, folder_.file("1/d.h5"));
  const std::string relative = "d.h5", run = folder_.file("0");
  const auto r =
      run_process({"mpirun",
                   "--allow-run-as-root",
                   "--oversubscribe",
                   "--bind-to",
                   "none",
                   "--mca",
                   "pml",
                   "ob1",
                   "--mca",
                   "btl",
                   "self,vader",
                   "-n",
                   "2",
                   "sh",
                   "-c",
                   "cd " + folder_.file("") + "/$OMPI_COMM_WORLD_RANK; exec \"$0\" \"$@\"",
                   testing_support::longspan_path(),
                   "train",
                   "--config",
                   LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                   "--data.path",
                   relative,
                   "--run.directory",
                   folder_.file("run"),
                   "--train.steps",
                   "1"});
  EXPECT_EQ(r.status, 2) << r.err;
  EXPECT_NE(r.err.find("rank 1 (" + node_name() + ") differs from rank 0: dataset at d.h5="),
            std::string::npos)
      << r.err;
}

TEST_F(World, AnotherProgramIsNamed) {
  const std::string data = prepared("d.h5", "slurm");
  // The same program but for one letter of its build id, as a rebuilt one on another node.
  std::ifstream in(testing_support::longspan_path(), std::ios::binary);
  std::string program{std::istreambuf_iterator<char>(in), {}};
  const std::size_t note = program.find(std::string("\x14\0\0\0\x03\0\0\0GNU\0", 12));
  ASSERT_NE(note, std::string::npos) << "the program has no build id";
  program[note + 12] = static_cast<char>(program[note + 12] ^ 1);
  const std::string other = folder_.file("other");
  std::ofstream(other, std::ios::binary) << program;
  fs::permissions(other, fs::perms::owner_all);
  const auto r = two("exec " + other + " \"$@\"", data);
  EXPECT_EQ(r.status, 2) << r.err;
  EXPECT_NE(r.err.find("differs from rank 0: program build="), std::string::npos) << r.err;
}

TEST(Differences, AreListedUpToAFew) {
  const RankFacts first = {{"a", "1"}, {"b", "2"}, {"c", "3"}, {"d", "4"}, {"e", "5"}, {"f", ""}};
  RankFacts mine = first;
  EXPECT_EQ(differences(mine, first), "");
  mine[1].second = "7";
  EXPECT_EQ(differences(mine, first), "b=7 (rank 0: 2)");
  for (auto& [name, value] : mine) value = "x";
  EXPECT_EQ(differences(mine, first),
            "a=x (rank 0: 1), b=x (rank 0: 2), c=x (rank 0: 3), d=x (rank 0: 4) and 2 more");
}

TEST(BuildId, IsKnown) {
  EXPECT_NE(build_id(), "unknown");
  EXPECT_GE(build_id().size(), 16u);
}

}  // namespace
}  // namespace longspan::launcher
