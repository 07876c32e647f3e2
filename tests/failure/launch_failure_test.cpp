// label: slow
// timeout: 300
/// launch and real ranks that crash, are killed, or are asked to stop: the run ends by itself with
/// the bits of a run that nobody touched, or says why it does not.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <nlohmann/json.hpp>
#include <thread>

#include "launcher/run_history.hpp"
#include "launcher/run_state.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using launcher::RunState;
using testing_support::ProcessResult;

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Steps, losses and gradient norms as written: equal texts are equal bits.
std::vector<std::string> numbers_of(const std::string& run) {
  std::vector<std::string> rows;
  std::ifstream lines(run + "/metrics.jsonl");
  for (std::string line; std::getline(lines, line);) {
    const auto j = nlohmann::json::parse(line);
    rows.push_back(j["step"].dump() + " " + j["loss"].dump() + " " + j["grad_norm"].dump());
  }
  return rows;
}

/// A process that is rank `rank` of `longspan train` in `run`; 0 = none.
pid_t process_of(const std::string& run, int rank) {
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    pid_t process = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), process).ec != std::errc())
      continue;
    const std::string command = read(entry.path().string() + "/cmdline");
    if (!command.starts_with(testing_support::longspan_path() + '\0' + "train" + '\0') ||
        command.find('\0' + run + '\0') == std::string::npos)
      continue;
    const std::string environment = '\0' + read(entry.path().string() + "/environ");
    if (environment.find('\0' + ("OMPI_COMM_WORLD_RANK=" + std::to_string(rank)) + '\0') !=
        std::string::npos)
      return process;
  }
  return 0;
}

class LaunchFailure : public testing::Test {
 protected:
  void SetUp() override {
    const auto r = testing_support::longspan(
        {"prepare", "--kind", "text", "--output", data_, LONGSPAN_SOURCE_DIR "/launcher"});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  std::vector<std::string> words(const std::string& run, std::vector<std::string> more = {}) const {
    std::vector<std::string> all = testing_support::launch_tiny(
        2, data_, run,
        "--mesh.context 2 --train.steps 60 --train.validate-every 0 --checkpoint.every 5", more);
    all.insert(all.begin(), testing_support::longspan_path());
    return all;
  }
  ProcessResult launch(const std::string& run, const std::vector<std::string>& more = {}) const {
    return testing_support::run_process(words(run, more));
  }
  std::future<ProcessResult> begin(const std::string& run,
                                   const std::vector<std::string>& more = {}) const {
    return std::async(std::launch::async,
                      [all = words(run, more)] { return testing_support::run_process(all); });
  }
  /// Until the run has finished `step`; false if it does not within a minute.
  static bool wait_for_step(const std::string& run, std::int64_t step) {
    const auto end = std::chrono::steady_clock::now() + 60s;
    while (std::chrono::steady_clock::now() < end) {
      const auto tail = launcher::read_metrics_tail(run + "/metrics.jsonl");
      if (tail && tail->step >= step) return true;
      std::this_thread::sleep_for(2ms);
    }
    return false;
  }
  static launcher::RunStatus status(const std::string& run) {
    return launcher::status_of(launcher::read_run(run), std::nullopt, 0);
  }
  static int count(const std::string& run, const std::string& name) {
    const auto history = launcher::read_history(run);
    return static_cast<int>(std::count_if(history.begin(), history.end(),
                                          [&](const auto& event) { return event.event == name; }));
  }

  testing_support::TemporaryDirectory folder_;
  std::string data_ = folder_.file("d.h5"), run_ = folder_.file("run");
};

TEST_F(LaunchFailure, AKilledRankIsStartedAgainAndNoBitChanges) {
  const std::string untouched = folder_.file("untouched");
  ASSERT_EQ(launch(untouched).status, 0);
  auto running = begin(run_);
  ASSERT_TRUE(wait_for_step(run_, 12));
  const pid_t victim = process_of(run_, 1);
  ASSERT_NE(victim, 0);
  ::kill(victim, SIGKILL);
  const ProcessResult result = running.get();
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.err.find("ended by signal 9 (Killed)"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("restart 1 of at most 10 in 1 s, from " + run_ + "/checkpoints/step-"),
            std::string::npos)
      << result.err;
  EXPECT_NE(result.out.find("continuing from "), std::string::npos) << result.out;
  EXPECT_EQ(numbers_of(run_), numbers_of(untouched));
  EXPECT_EQ(count(run_, "started"), 2);
  EXPECT_EQ(count(run_, "restarted"), 1);
  EXPECT_EQ(count(run_, "ended"), 2) << "the killed one is recorded by launch";
  EXPECT_EQ(status(run_).state, RunState::kDone);
  EXPECT_EQ(status(run_).restarts, 1);
  const std::string log = read(run_ + "/launch.log");
  EXPECT_NE(log.find("\n[launch] launch: "), std::string::npos) << log;
  EXPECT_NE(log.find("\n[0] saved "), std::string::npos) << log;
}

TEST_F(LaunchFailure, WithoutRestartsTheStatusComesBackAtOnce) {
  auto running = begin(run_, {"--max-restarts", "0"});
  ASSERT_TRUE(wait_for_step(run_, 3));
  const pid_t victim = process_of(run_, 0);
  ASSERT_NE(victim, 0);
  ::kill(victim, SIGSEGV);
  const ProcessResult result = running.get();
  EXPECT_EQ(result.status, 128 + SIGSEGV) << result.err;
  EXPECT_EQ(count(run_, "restarted"), 0);
  EXPECT_EQ(status(run_).state, RunState::kFailed);
}

TEST_F(LaunchFailure, ACrashAtTheSameStepIsNotTriedForEver) {
  const ProcessResult result = launch(run_, {"--optimizer.learning-rate", "1e30"});
  EXPECT_EQ(result.status, 1) << result.err;
  EXPECT_EQ(count(run_, "started"), 2);
  EXPECT_EQ(count(run_, "gave-up"), 1);
  const std::size_t last = result.err.rfind("longspan: launch: gave up: step ");
  ASSERT_NE(last, std::string::npos) << result.err;
  EXPECT_NE(result.err.find("has failed twice", last), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("lower optimizer.learning-rate", last), std::string::npos)
      << "the cause is not in the last line: " << result.err;
  EXPECT_EQ(status(run_).state, RunState::kFailed);
}

TEST_F(LaunchFailure, WrongUsageIsNotTriedAgainAndLeavesNothing) {
  // Only the ranks can find it: the file is there but no dataset.
  const std::string other = folder_.file("other.h5");
  std::ofstream(other) << "no dataset";
  const ProcessResult result = launch(run_, {"--data.path", other});
  EXPECT_TRUE(result.status == 2 || result.status == 3) << result.status << result.err;
  EXPECT_EQ(testing_support::count_lines(result.err), 1) << result.err;
  EXPECT_FALSE(fs::exists(run_));
}

TEST_F(LaunchFailure, StopIsHeededAndWithdrawnByTheNextStart) {
  auto running = begin(run_, {"--train.steps", "100000"});
  ASSERT_TRUE(wait_for_step(run_, 3));
  EXPECT_EQ(status(run_).state, RunState::kRunning);
  const auto stopped = testing_support::longspan({"stop", run_, "--wait"});
  EXPECT_EQ(stopped.status, 0) << stopped.err;
  EXPECT_NE(stopped.out.find("asked to save and end"), std::string::npos) << stopped.out;
  EXPECT_NE(stopped.out.find("has ended (stopped, step "), std::string::npos) << stopped.out;
  const ProcessResult result = running.get();
  EXPECT_EQ(result.status, 75) << result.err;
  EXPECT_NE(result.out.find("longspan stop was asked for"), std::string::npos) << result.out;
  EXPECT_EQ(status(run_).state, RunState::kStopped);
  EXPECT_EQ(count(run_, "restarted"), 0);
  // Every step is saved: where it stopped, it goes on.
  const std::int64_t step = launcher::read_metrics_tail(run_ + "/metrics.jsonl")->step;
  EXPECT_EQ(launcher::newest_checkpoint_seen(run_).step, step);
  EXPECT_TRUE(launcher::stop_requested(run_));
  const ProcessResult more = launch(run_, {"--train.steps", "100000", "--train.stop-after", "2"});
  EXPECT_EQ(more.status, 75) << more.err;
  EXPECT_NE(more.out.find("train.stop-after=2"), std::string::npos) << more.out;
  EXPECT_EQ(launcher::read_metrics_tail(run_ + "/metrics.jsonl")->step, step + 2);
}

TEST_F(LaunchFailure, TrainAloneWithdrawsTheWishToo) {
  fs::create_directory(run_);
  launcher::request_stop(run_);
  auto all = words(run_, {"--train.steps", "3", "--mesh.context", "1"});
  all.erase(all.begin() + 1, all.begin() + 4);
  all.insert(all.begin() + 1, "train");
  EXPECT_EQ(testing_support::run_process(all).status, 0);
  EXPECT_FALSE(launcher::stop_requested(run_));
  EXPECT_EQ(status(run_).state, RunState::kDone);
}

TEST_F(LaunchFailure, AHistoryThatCannotBeWrittenStopsNobody) {
  fs::create_directories(run_ + "/history.jsonl");
  fs::create_directories(run_ + "/launch.log");
  const ProcessResult result = launch(run_, {"--train.steps", "3"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.err.find("the run's history lacks that it started"), std::string::npos)
      << result.err;
}

TEST_F(LaunchFailure, TwoNamesOfThisMachineAreHosts) {
  const std::string hosts = folder_.file("hosts");
  std::ofstream(hosts) << "localhost\n127.0.0.1\n";
  const ProcessResult result = launch(run_, {"--train.steps", "3", "--hostfile", hosts});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("2 ranks"), std::string::npos) << result.out;
}

TEST_F(LaunchFailure, ARankOnAnotherHostIsStartedAgain) {
  // Two hosts in one machine: "ssh" starts mpirun's daemon under another host name.
  if (::geteuid() != 0) GTEST_SKIP() << "host names of its own need root";
  const std::string ssh = folder_.file("ssh"), hosts = folder_.file("hosts");
  std::ofstream(ssh) << "#!/bin/sh\n"
                        "while case \"$1\" in -*) true;; *) false;; esac; do shift; done\n"
                        "host=$1; shift\n"
                        "exec unshare --uts sh -c \"hostname $host; $*\"\n";
  fs::permissions(ssh, fs::perms::owner_all);
  std::ofstream(hosts) << "nodea slots=1\nnodeb slots=1\n";
  const std::vector<std::pair<const char*, std::string>> environment = {
      {"OMPI_MCA_plm_rsh_agent", ssh},
      {"OMPI_MCA_rtc", "^hwloc"},  // the two daemons would share a file of this name
      {"OMPI_MCA_mpi_yield_when_idle", "1"}};
  for (const auto& [name, value] : environment) ::setenv(name, value.c_str(), 1);
  auto running = begin(run_, {"--hostfile", hosts, "--train.steps", "12", "--run.threads", "1"});
  EXPECT_TRUE(wait_for_step(run_, 6));
  if (const pid_t victim = process_of(run_, 1); victim != 0) ::kill(victim, SIGKILL);
  const ProcessResult result = running.get();
  for (const auto& [name, value] : environment) ::unsetenv(name);
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.err.find("restart 1 of at most 10"), std::string::npos) << result.err;
  const auto history = launcher::read_history(run_);
  ASSERT_EQ(count(run_, "started"), 2);
  EXPECT_TRUE(history.front().where.starts_with("nodea:")) << history.front().where;
  // The hosts see which restart it is: mpirun carries the variable there.
  EXPECT_EQ(history.back().restart, 1);
  EXPECT_EQ(numbers_of(run_).size(), 12u);
}

}  // namespace
}  // namespace longspan
