/// The batch script: its text against a golden file, and its behaviour, by running it with bash and
/// stand-ins for srun, mpirun and longspan.
#include "slurm/batch_script.hpp"

#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "slurm/quoting.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using slurm::BatchJob;
using testing_support::ProcessResult;

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Every setting that the script can hold.
BatchJob full_job() {
  BatchJob job;
  job.slurm.nodes = 4;
  job.slurm.ranks_per_node = 2;
  job.slurm.cpus_per_rank = 8;
  job.slurm.gpus_per_rank = 1;
  job.slurm.memory = "64G";
  job.slurm.time = "12:00:00";
  job.slurm.partition = "gpu";
  job.slurm.account = "climate";
  job.slurm.qos = "normal";
  job.slurm.constraint = "ib&a100";
  job.slurm.reservation = "spring school";
  job.slurm.dependency = "afterok:12";
  job.slurm.extra = "--exclusive\n--mail-type=END";
  job.slurm.modules = "gcc/12 openmpi/4.1";
  job.slurm.environment = "OMP_PROC_BIND=true GREETING='two words'";
  job.name = "it's \"the\" run";
  job.program = "/opt/longspan/bin/longspan";
  job.submitted_from = "/home/ada/my runs";
  job.run_directory = "/scratch/ada/it's 100%";
  job.settings = {"--run.name", job.name, "--data.path", "data/code.h5"};
  job.lead = slurm::signal_lead(12.5, 3.2, 60, 12 * 3600);
  return job;
}

TEST(BatchScript, IsTheGoldenFile) {
  const std::string golden = LONGSPAN_SOURCE_DIR "/tests/golden/batch_script.sh";
  const std::string script = slurm::batch_script(full_job());
  // A change on purpose: look at the difference, then copy the new text over the golden file.
  const std::string copy = LONGSPAN_BINARY_DIR "/batch_script.sh.new";
  if (script != read(golden)) std::ofstream(copy, std::ios::binary) << script;
  EXPECT_EQ(script, read(golden)) << "the new text is in " << copy;
}

TEST(BatchScript, LeadIsOneStepOneSaveAndTheMargin) {
  EXPECT_EQ(slurm::signal_lead(12.5, 3.2, 60, 0).seconds, 76);
  EXPECT_EQ(slurm::signal_lead(0, 0, 60, 0).seconds, 180);
  EXPECT_EQ(slurm::signal_lead(12.5, 3.2, 60, 100).seconds, 50);
  EXPECT_EQ(slurm::signal_lead(1e9, 3.2, 60, 0).seconds, 65535);
  EXPECT_NE(slurm::signal_lead(12.5, 0, 60, 0).reason.find("12.50 s (measured)"),
            std::string::npos);
  EXPECT_NE(slurm::signal_lead(12.5, 0, 60, 0).reason.find("60.00 s (assumed)"), std::string::npos);
}

TEST(BatchScript, LogIsWhereSbatchCanNameIt) {
  BatchJob job = full_job();
  EXPECT_EQ(slurm::log_pattern(job), "/scratch/ada/it's 100%%/slurm-%j.log");
  EXPECT_EQ(slurm::log_path(job, "7"), "/scratch/ada/it's 100%/slurm-7.log");
  job.run_directory = "/scratch/a\nb";
  EXPECT_EQ(slurm::log_pattern(job), "longspan-%j.log");
  EXPECT_EQ(slurm::log_path(job, "7"), "/home/ada/my runs/longspan-7.log");
  job.slurm.array = "1-3";
  EXPECT_EQ(slurm::log_path(job, "7"), "/home/ada/my runs/longspan-7_%a.log");
}

TEST(Quoting, WordsAreSplitAtSpacesOutsideOfQuotes) {
  using Words = std::vector<std::string>;
  bool closed = false;
  EXPECT_EQ(slurm::split_words("  a=1 b='x y' c=\"q\\\" $HOME\" '' ", &closed),
            (Words{"a=1", "b=x y", "c=q\" $HOME", ""}));
  EXPECT_TRUE(closed);
  EXPECT_EQ(slurm::split_words("a 'b c", &closed), (Words{"a", "b c"}));
  EXPECT_FALSE(closed);
  EXPECT_EQ(slurm::sbatch_quoted("a\nb \"c\\"), "\"a?b \\\"c\\\\\"");
  EXPECT_EQ(slurm::sbatch_quoted("ib_a100"), "ib_a100");
}

/// Runs scripts with a PATH whose srun, mpirun and longspan only note their arguments.
class RunBatchScript : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(folder_.file("bin"));
    command("srun",
            "[[ $1 == --mpi=list ]] && { cat \"$HOME/mpi\" 2>/dev/null; exit; }\n"
            "echo srun >>\"$HOME/starter\"\n"
            "while [[ $1 == -* ]]; do shift; done\nexec \"$@\"\n");
    command("mpirun",
            "echo mpirun >>\"$HOME/starter\"\n"
            "while [[ $1 == -* ]]; do shift 2; done\nexec \"$@\"\n");
    std::ofstream(folder_.file("mpi")) << "MPI plugin types are...\n\tpmix\n";
    ranks_do("exit 0");
    job_.slurm.nodes = 1;
    job_.slurm.ranks_per_node = 2;
    job_.program = folder_.file("bin/longspan");
    job_.submitted_from = folder_.path();
    job_.run_directory = folder_.file("run");
    fs::create_directories(job_.run_directory);
    job_.lead = slurm::signal_lead(0, 0, 60, 0);
  }
  void command(const std::string& name, const std::string& body) {
    const std::string path = folder_.file("bin/" + name);
    std::ofstream(path) << "#!/bin/bash\n" << body;
    fs::permissions(path, fs::perms::owner_all);
  }
  /// What `longspan train` does; `after`: what `longspan submit --after` does.
  void ranks_do(const std::string& body, const std::string& after = "exit 0") {
    command("longspan",
            "printf '%s\\0' \"$@\" >>\"$HOME/said.$1\"\n"
            "env >\"$HOME/environment\"\n"
            "if [[ $1 == train ]]; then\n" +
                body + "\nfi\n" + after + "\n");
  }
  ProcessResult run(const std::string& interrupt_when = "", int signal = 0) {
    const std::string script = folder_.file("script.sh");
    std::ofstream(script, std::ios::binary) << slurm::batch_script(job_);
    return testing_support::run_process(
        {"env", "-i", "HOME=" + folder_.path(), "PATH=" + folder_.file("bin") + ":/usr/bin:/bin",
         "SLURM_JOB_ID=7", "SLURM_JOB_NODELIST=n1", "bash", script},
        interrupt_when, signal);
  }
  /// Arguments of `longspan train` or `longspan submit`.
  std::vector<std::string> said(const std::string& command) {
    std::vector<std::string> words;
    std::istringstream text(read(folder_.file("said." + command)));
    for (std::string word; std::getline(text, word, '\0');) words.push_back(word);
    return words;
  }
  std::string starter() { return read(folder_.file("starter")); }

  testing_support::TemporaryDirectory folder_;
  BatchJob job_;
};

TEST_F(RunBatchScript, HostileNamesAreOnlyNames) {
  const std::string evil =
      "x; touch pwned; rm -rf ~\n$(touch pwned)`touch pwned`'\"\\ && touch pwned #*?";
  job_.name = evil;
  job_.run_directory = folder_.file("run " + evil.substr(0, 8) + "\n'$(touch pwned)'\"");
  fs::create_directories(job_.run_directory);
  job_.settings = {"--run.name", evil, "--data.path", "-e " + evil};
  job_.slurm.environment = "EVIL='$(touch pwned); `touch pwned`'";
  for (std::string* value : {&job_.slurm.partition, &job_.slurm.account, &job_.slurm.constraint})
    *value = evil;
  const ProcessResult r = run();
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_FALSE(fs::exists(folder_.file("pwned")));
  EXPECT_TRUE(fs::exists(folder_.file("script.sh"))) << "the home folder was emptied";
  EXPECT_EQ(said("train"),
            (std::vector<std::string>{"train", "--run.name", evil, "--data.path", "-e " + evil,
                                      "--run.directory", job_.run_directory}));
  EXPECT_NE(read(folder_.file("environment")).find("EVIL=$(touch pwned); `touch pwned`"),
            std::string::npos);
}

TEST_F(RunBatchScript, ModulesAreLoadedBeforeTheRanksOrNothingStarts) {
  command("module", "echo \"module $*\" >>\"$HOME/modules\"\n[[ $* != *nosuch* ]]\n");
  job_.slurm.modules = "gcc/12 'a b;c'";
  job_.slurm.environment = "OMP_PROC_BIND=true GREETING='two words'";
  ranks_do("cp \"$HOME/modules\" \"$HOME/loaded\"");
  EXPECT_EQ(run().status, 0);
  EXPECT_EQ(read(folder_.file("loaded")), "module load gcc/12 a b;c\n");
  const std::string environment = read(folder_.file("environment"));
  EXPECT_NE(environment.find("\nOMP_PROC_BIND=true\n"), std::string::npos) << environment;
  EXPECT_NE(environment.find("\nGREETING=two words\n"), std::string::npos) << environment;

  fs::remove(folder_.file("said.train"));
  job_.slurm.modules = "nosuch";
  EXPECT_EQ(run().status, 2);
  EXPECT_TRUE(said("train").empty());
}

TEST_F(RunBatchScript, FolderItIsSubmittedFromMayHaveAnyName) {
  job_.submitted_from = folder_.file("-a b\n$(exit 1)'");
  fs::create_directories(job_.submitted_from);
  ranks_do("pwd >\"$HOME/where\"");
  EXPECT_EQ(run().status, 0);
  EXPECT_EQ(read(folder_.file("where")), job_.submitted_from + "\n");
}

TEST_F(RunBatchScript, StatusOfTheRanksDecidesAndIsTheJobs) {
  ranks_do("exit 75");
  EXPECT_EQ(run().status, 75);
  const auto after = said("submit");
  ASSERT_GE(after.size(), 3u);
  EXPECT_EQ(after[1] + after[2], "--after75");
  EXPECT_EQ(after.back(), job_.run_directory);
}

TEST_F(RunBatchScript, OutlivesAKilledProgram) {
  ranks_do("kill -KILL $$", "kill -KILL $$");
  const ProcessResult r = run();
  EXPECT_EQ(r.status, 137);
  EXPECT_EQ(said("submit").at(2), "137");
  EXPECT_NE(r.err.find("not started again; the ranks ended with status 137"), std::string::npos)
      << r.err;
}

TEST_F(RunBatchScript, WarningReachesTheRanksAndTheirStatusIsNotLost) {
  // They go on for a while after the signal: a wait that it cut short is not their end.
  ranks_do(
      "trap 'warned=yes' USR1\necho ready\n"
      "for ((i = 0; i < 100; i++)); do\n"
      "  if [[ ${warned:-} ]]; then sleep 0.5; exit 75; fi\n  sleep 0.1\ndone\nexit 9");
  EXPECT_EQ(run("ready", SIGUSR1).status, 75);
  EXPECT_EQ(said("submit").at(2), "75");
}

TEST_F(RunBatchScript, ShellOutlivesTheTermThatSlurmSendsToAll) {
  ranks_do(
      "trap 'exit 75' TERM\necho ready\n"
      "for ((i = 0; i < 20; i++)); do sleep 0.1; done\nexit 0");
  EXPECT_EQ(run("ready", SIGTERM).status, 0);
  EXPECT_EQ(said("submit").at(2), "0");
}

TEST_F(RunBatchScript, StarterIsWhatWorksInTheJob) {
  EXPECT_EQ(run().status, 0);
  EXPECT_EQ(starter(), "srun\n");
  std::ofstream(folder_.file("mpi")) << "MPI plugin types are...\n\tnone\n\tpmi2\n";
  EXPECT_EQ(run().status, 0);
  EXPECT_EQ(starter(), "srun\nmpirun\n");
  job_.slurm.starter = slurm::Starter::kSrun;
  EXPECT_EQ(run().status, 0);
  job_.slurm.starter = slurm::Starter::kMpirun;
  EXPECT_EQ(run().status, 0);
  EXPECT_EQ(starter(), "srun\nmpirun\nsrun\nmpirun\n");
}

TEST_F(RunBatchScript, StopFileKeepsItFromStarting) {
  std::ofstream(job_.run_directory + "/stop");
  const ProcessResult r = run();
  EXPECT_EQ(r.status, 0);
  EXPECT_NE(r.out.find("not started"), std::string::npos);
  EXPECT_TRUE(said("train").empty());
}

TEST_F(RunBatchScript, ElementOfAnArrayIsARunOfItsOwn) {
  job_.slurm.array = "3-4";
  const std::string script = folder_.file("script.sh");
  std::ofstream(script, std::ios::binary) << slurm::batch_script(job_);
  const ProcessResult r = testing_support::run_process(
      {"env", "HOME=" + folder_.path(), "PATH=" + folder_.file("bin") + ":/usr/bin:/bin",
       "SLURM_ARRAY_TASK_ID=3", "SLURM_JOB_ID=7", "SLURM_JOB_NODELIST=n1", "bash", script});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(said("train"), (std::vector<std::string>{"train", "--run.seed", "3", "--run.directory",
                                                     job_.run_directory + "/3"}));
}

}  // namespace
}  // namespace longspan
