// label: slow
// timeout: 900
// lock: slurm-cluster
/// longspan submit on a real Slurm cluster: runs that finish, are warned, preempted, out of time,
/// chained and cancelled. Whatever happens in between, the losses are those of a run that nobody
/// disturbed, bit for bit.
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>
#include <thread>

#include "launcher/run_history.hpp"
#include "slurm/cluster_fixture.hpp"
#include "support/sample_text.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using testing_support::longspan_path;
using testing_support::ProcessResult;

class SubmitCluster : public testing_support::ClusterTest {
 protected:
  void SetUp() override {
    ClusterTest::SetUp();
    if (IsSkipped()) return;
    std::ofstream(file("text.txt")) << testing_support::sample_text(40000);
    const auto prepared = testing_support::longspan(
        {"prepare", "--kind", "text", "--output", file("data.h5"), file("text.txt")});
    ASSERT_EQ(prepared.status, 0) << prepared.err;
    std::ofstream(file("run.ini")) << "[model]\nlayers = 1\nwidth = 32\nheads = 2\n"
                                      "[data]\npath = data.h5\nsequence-length = 64\n"
                                      "[mesh]\ndata = 1\ncontext = 2\n"
                                      "[run]\nthreads = 1\ndirectory = run\n"
                                      "[train]\nsteps = 60\n"
                                      "[slurm]\nnodes = 2\ntime = 10\n";
  }

  ProcessResult submit(std::vector<std::string> more = {}) {
    std::vector<std::string> command = {longspan_path(), "submit", "--config", "run.ini"};
    command.insert(command.end(), more.begin(), more.end());
    return head(command);
  }
  /// Id of the job; a failure if there is none.
  std::string submitted(std::vector<std::string> more = {}) {
    const ProcessResult r = submit(std::move(more));
    EXPECT_EQ(r.status, 0) << r.err;
    std::smatch id;
    EXPECT_TRUE(std::regex_search(r.out, id, std::regex("submitted job ([0-9]+)"))) << r.out;
    log_ = file("run/slurm-" + id.str(1) + ".log");
    EXPECT_NE(r.out.find("log: " + log_), std::string::npos) << r.out;
    return id.str(1);
  }
  /// Until `steps` steps are in the metrics.
  bool computed(int steps) {
    return bool(says(file("run/metrics.jsonl"), "{\"step\":" + std::to_string(steps) + ",", kSoon));
  }

  static std::vector<std::string> numbers(const std::string& metrics) {
    std::vector<std::string> rows;
    std::istringstream lines(read(metrics));
    for (std::string line; std::getline(lines, line);) {
      const auto j = nlohmann::json::parse(line);
      rows.push_back(j["step"].dump() + " " + j["loss"].dump() + " " + j["grad_norm"].dump());
    }
    return rows;
  }
  /// The same run, undisturbed, without Slurm; made once.
  std::vector<std::string> undisturbed(int steps) {
    static std::map<int, std::vector<std::string>> known;
    if (const auto at = known.find(steps); at != known.end()) return at->second;
    const auto r = testing_support::run_process(
        {"env", "-C", folder_.path(), longspan_path(), "launch", "--ranks", "2", "--config",
         "run.ini", "--run.directory", "alone", "--train.steps", std::to_string(steps)});
    EXPECT_EQ(r.status, 0) << r.err;
    return known[steps] = numbers(file("alone/metrics.jsonl"));
  }
  /// "submitted requeued job-ended"
  std::string events() {
    std::string all;
    for (const auto& event : launcher::read_history(file("run")))
      if (std::string(" submitted requeued chained gave-up job-ended ")
              .find(" " + event.event + " ") != std::string::npos)
        all += (all.empty() ? "" : " ") + event.event;
    return all;
  }
  std::string log() { return read(log_); }
  std::string log_;
};

class SubmitStarters : public SubmitCluster, public testing::WithParamInterface<std::string> {};

TEST_P(SubmitStarters, WarnedRunSavesIsRequeuedAndEndsWithTheSameBits) {
  const std::string job = submitted({"--slurm.starter", GetParam(), "--train.steps", "6000"});
  ASSERT_TRUE(computed(5)) << log();
  ASSERT_EQ(head({"scancel", "--batch", "--signal=USR1", job}).status, 0);
  ASSERT_TRUE(says(log_, "the job begins again")) << log();
  EXPECT_NE(log().find("SIGUSR1 was received"), std::string::npos) << log();
  ASSERT_TRUE(reached(job, {"COMPLETED"}, std::chrono::seconds(200))) << log();
  EXPECT_EQ(this->job(job)["Restarts"], "1");
  EXPECT_EQ(this->job(job)["ExitCode"], "0:0");
  EXPECT_NE(log().find("restart 1, on n[1-2], by " + (GetParam() == "auto" ? "srun" : GetParam())),
            std::string::npos)
      << log();
  EXPECT_NE(log().find("continuing from "), std::string::npos);
  EXPECT_EQ(events(), "submitted requeued job-ended");
  EXPECT_EQ(numbers(file("run/metrics.jsonl")), undisturbed(6000));
}
INSTANTIATE_TEST_SUITE_P(Both, SubmitStarters, testing::Values("auto", "mpirun"),
                         [](const auto& p) { return p.param; });

TEST_F(SubmitCluster, JobLimitsFarShorterThanTheTraining) {
  // Each job has a minute, its warning comes before; the run needs longer. The ranks learn of the
  // end from Slurm's signal or from squeue: whichever is first.
  // Beside it, so that minutes are not waited for twice, a script of the user's own without
  // --signal: it learns of its end from squeue alone.
  const std::string own = ClusterTest::submit(
      "#!/bin/bash\n#SBATCH --nodes=1 --ntasks-per-node=2 --time=1 --output=own.log\n"
      "srun --mpi=pmix -K1 " +
      longspan_path() + " train --config run.ini --run.directory own --train.steps 100000000\n");
  const std::string job = submitted({"--train.steps", "100000000", "--slurm.time", "1",
                                     "--slurm.max-restarts", "1", "--slurm.signal-margin", "5"});
  ASSERT_TRUE(says(log_, "the job begins again", std::chrono::seconds(100))) << log();
  std::int64_t boundary = 0;
  for (const auto& event : launcher::read_history(file("run")))
    if (event.event == "requeued") boundary = event.step;
  ASSERT_GT(boundary, 10);
  // The second job's limit need not be waited for.
  ASSERT_TRUE(computed(static_cast<int>(boundary) + 11)) << log();
  ASSERT_EQ(head({"scancel", "--batch", "--signal=USR1", job}).status, 0);
  ASSERT_TRUE(says(log_, "1 restarts are slurm.max-restarts", std::chrono::seconds(120))) << log();
  EXPECT_EQ(log().find("TIME LIMIT"), std::string::npos) << log();
  EXPECT_EQ(events(), "submitted requeued gave-up");
  ASSERT_TRUE(reached(job, {"FAILED"}));
  EXPECT_EQ(this->job(job)["ExitCode"], "75:0");
  ASSERT_TRUE(says(file("own.log"), "the job ends at")) << read(file("own.log"));
  ASSERT_TRUE(reached(own, {"FAILED"}));
  EXPECT_EQ(this->job(own)["ExitCode"], "75:0");
  EXPECT_TRUE(fs::exists(file("own/checkpoints/latest")));

  auto here = numbers(file("run/metrics.jsonl"));
  const auto compared = static_cast<std::size_t>(boundary) + 10;
  ASSERT_GT(here.size(), compared);
  here.resize(compared);
  // Same schedule, so that the first steps can be compared: 100000000 steps are never computed.
  const auto r = testing_support::run_process(
      {"env", "-C", folder_.path(), longspan_path(), "launch", "--ranks", "2", "--config",
       "run.ini", "--run.directory", "alone", "--train.steps", "100000000", "--train.stop-after",
       std::to_string(compared)});
  EXPECT_EQ(r.status, 75) << r.err;
  EXPECT_EQ(here, numbers(file("alone/metrics.jsonl")));
}

TEST_F(SubmitCluster, PreemptedByAMoreImportantJob) {
  const std::string job = submitted({"--slurm.partition", "low", "--train.steps", "6000"});
  ASSERT_TRUE(computed(5)) << log();
  const ProcessResult other = head({"sbatch", "--parsable", "-p", "high", "-N4", "--exclusive",
                                    "-t", "1", "--output=/dev/null", "--wrap", "sleep 1"});
  ASSERT_EQ(other.status, 0) << other.err;
  ASSERT_TRUE(says(log_, "DUE TO PREEMPTION")) << log();
  ASSERT_TRUE(reached(job, {"COMPLETED"}, std::chrono::seconds(200))) << log();
  EXPECT_EQ(this->job(job)["Restarts"], "1");
  EXPECT_EQ(numbers(file("run/metrics.jsonl")), undisturbed(6000));
}

TEST_F(SubmitCluster, PreemptedWithGraceSavesAndGoesOn) {
  // The batch shell is warned at once and has the partition's GraceTime.
  const std::string job = submitted({"--slurm.partition", "grace", "--train.steps", "6000"});
  ASSERT_TRUE(computed(5)) << log();
  const ProcessResult other = head({"sbatch", "--parsable", "-p", "high", "-N4", "--exclusive",
                                    "-t", "1", "--output=/dev/null", "--wrap", "sleep 1"});
  ASSERT_EQ(other.status, 0) << other.err;
  ASSERT_TRUE(says(log_, "the job begins again")) << log();
  EXPECT_NE(log().find("SIGUSR1 was received"), std::string::npos) << log();
  ASSERT_TRUE(reached(job, {"COMPLETED"}, std::chrono::seconds(200))) << log();
  EXPECT_EQ(this->job(job)["Restarts"], "1");
  EXPECT_EQ(events(), "submitted requeued job-ended");
  EXPECT_EQ(numbers(file("run/metrics.jsonl")), undisturbed(6000));
}

TEST_F(SubmitCluster, ChainOfJobsWithoutRequeue) {
  const std::string first =
      submitted({"--slurm.continue", "chain", "--train.steps", "60", "--train.stop-after", "25"});
  ASSERT_TRUE(reached(first, {"FAILED"})) << log();
  EXPECT_EQ(this->job(first)["ExitCode"], "75:0");
  const std::string second = std::to_string(std::stoi(first) + 1);
  const std::string third = std::to_string(std::stoi(first) + 2);
  ASSERT_TRUE(reached(third, {"COMPLETED"}, std::chrono::seconds(120)))
      << log() << read(file("run/slurm-" + second + ".log"));
  EXPECT_EQ(events(), "submitted chained chained job-ended");
  EXPECT_EQ(numbers(file("run/metrics.jsonl")), undisturbed(60));
}

TEST_F(SubmitCluster, NoProgressTwiceEndsIt) {
  // A limit that is over before the first step: the ranks never get on.
  const std::string job = submitted({"--train.steps", "60"});
  ASSERT_TRUE(computed(60)) << log();
  ASSERT_TRUE(reached(job, {"COMPLETED"})) << log();
  // The run's end is taken back: it has one more step to do, and never does it.
  launcher::append_event(file("run"), {.event = "submitted", .job = "0", .step = 60});
  launcher::append_event(file("run"), {.event = "requeued", .job = "0", .step = 60, .status = 75});
  const std::string id =
      ClusterTest::submit("#!/bin/bash\n#SBATCH --output=after.log\n" + longspan_path() +
                          " submit --config run.ini --after 75\n");
  ASSERT_TRUE(says(file("after.log"), "two jobs in a row ended at step 60: no progress"));
  ASSERT_TRUE(reached(id, {"COMPLETED"}));
}

TEST_F(SubmitCluster, CancelledAndStoppedRunsStayEnded) {
  const std::string job = submitted({"--train.steps", "100000000"});
  ASSERT_TRUE(computed(5)) << log();
  const ProcessResult again = submit();
  EXPECT_EQ(again.status, 1);
  EXPECT_NE(again.err.find("has job " + job + " already (RUNNING)"), std::string::npos)
      << again.err;
  ASSERT_EQ(head({"scancel", job}).status, 0);
  ASSERT_TRUE(reached(job, {"CANCELLED"})) << log();
  ASSERT_TRUE(says(log_, "the job was cancelled")) << log();

  const std::string next = submitted({"--train.steps", "100000000"});
  ASSERT_TRUE(says(log_, "continuing from ")) << log();
  ASSERT_TRUE(says(log_, "time left")) << log();
  launcher::request_stop(file("run"));
  ASSERT_EQ(head({"scancel", "--batch", "--signal=USR1", next}).status, 0);
  ASSERT_TRUE(says(log_, "the run was asked to stop")) << log();
  ASSERT_TRUE(reached(next, {"FAILED"}));
  EXPECT_EQ(events(), "submitted job-ended submitted job-ended");
}

TEST_F(SubmitCluster, ArrayElementsAreRunsAndEachGoesOnAlone) {
  const ProcessResult r = submit({"--slurm.array", "1-2", "--slurm.nodes", "1", "--train.steps",
                                  "20", "--train.stop-after", "12"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("_%a.log"), std::string::npos) << r.out;
  for (const char* element : {"run/1", "run/2"}) {
    ASSERT_TRUE(says(file(std::string(element) + "/history.jsonl"), "\"job-ended\"",
                     std::chrono::seconds(120)));
    EXPECT_EQ(numbers(file(std::string(element) + "/metrics.jsonl")).size(), 20u);
    int requeued = 0;
    for (const auto& event : launcher::read_history(file(element)))
      requeued += event.event == "requeued";
    EXPECT_EQ(requeued, 1) << element;
  }
  EXPECT_NE(numbers(file("run/1/metrics.jsonl")), numbers(file("run/2/metrics.jsonl")));
}

TEST_F(SubmitCluster, RefusalsAreOneLineWithTheRemedy) {
  struct {
    std::vector<std::string> settings;
    const char* says;
  } const cases[] = {
      {{"--slurm.partition", "nosuch"}, "set slurm.partition"},
      {{"--slurm.nodes", "6", "--mesh.context", "6"}, "slurm.nodes=6 but partition main has 4"},
      {{"--slurm.cpus-per-rank", "100"}, "no node of partition main has more than"},
      {{"--slurm.gpus-per-rank", "8"}, "slurm.gpus-per-rank"},
      {{"--slurm.constraint", "nosuch"}, "slurm.constraint"},
      {{"--slurm.dependency", "nosuch"}, "slurm.dependency"}};
  for (const auto& c : cases) {
    const ProcessResult r = submit(c.settings);
    EXPECT_EQ(r.status, 1) << r.out;
    EXPECT_NE(r.err.find(c.says), std::string::npos) << r.err;
    EXPECT_EQ(testing_support::count_lines(r.err), 1) << r.err;
  }
  EXPECT_EQ(events(), "");

  // What may become possible is submitted, and indeed waits.
  const ProcessResult r = submit({"--slurm.partition", "short", "--slurm.time", "3:00:00"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE((r.out + r.err).find("slurm.time=3:00:00 is above the 0-02:00:00 of partition short"),
            std::string::npos)
      << r.out << r.err;
  const std::size_t id = r.out.find("submitted job ") + 14;
  const std::string waiting = r.out.substr(id, r.out.find(':', id) - id);
  // The scheduler has to look at it once.
  auto facts = job(waiting);
  for (int tries = 0; tries < 300 && facts["Reason"] == "None"; ++tries) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    facts = job(waiting);
  }
  EXPECT_EQ(facts["JobState"], "PENDING");
  // PartitionTimeLimit, or PartitionConfig from another part of Slurm.
  EXPECT_TRUE(facts["Reason"].starts_with("Partition")) << facts["Reason"];
}

TEST_F(SubmitCluster, HostileNamesReachSlurmAndComeBack) {
  const std::string name = "x; touch pwned; rm -rf ~ $(touch pwned)'\" 100%";
  const ProcessResult r = submit(
      {"--run.name", name, "--run.directory", name, "--train.steps", "3", "--slurm.nodes", "1"});
  ASSERT_EQ(r.status, 0) << r.err;
  ASSERT_TRUE(says(file(name + "/history.jsonl"), "\"job-ended\"")) << r.out;
  EXPECT_EQ(numbers(file(name + "/metrics.jsonl")).size(), 3u);
  const std::string path = r.out.substr(r.out.find("log: ") + 5);
  EXPECT_NE(read(path.substr(0, path.size() - 1)).find("the run is done"), std::string::npos);
  EXPECT_FALSE(fs::exists(file("pwned")));
}

}  // namespace
}  // namespace longspan
