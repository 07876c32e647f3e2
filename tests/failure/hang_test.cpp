// label: slow
// timeout: 600
/// A rank that SIGSTOP halts is named with node, collective and number, in one message, and the job
/// ends; ranks that are only slow, suspended, killed or healthy are not named so.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "launcher/world_check.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using nlohmann::json;

constexpr double kTimeout = 4;   ///< run.hang-timeout, s
constexpr double kSlack = 5;     ///< what naming may take beyond it
constexpr auto kLongest = 120s;  ///< of anything here, on a loaded machine

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

int count(const std::string& text, const std::string& word) {
  int found = 0;
  for (std::size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1))
    ++found;
  return found;
}

class Hang : public testing::Test {
 protected:
  void SetUp() override {
    const auto r = testing_support::longspan(
        {"prepare", "--kind", "text", "--output", data_, LONGSPAN_SOURCE_DIR "/model"});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  void TearDown() override {
    if (launch_ > 0) ::kill(launch_, SIGKILL), ::waitpid(launch_, nullptr, 0);
    for (const pid_t rank : ranks_) ::kill(rank, SIGKILL);
  }
  /// `longspan launch` on so many ranks, its output in files.
  void start(int ranks, const std::vector<std::string>& more) {
    std::vector<std::string> words = {testing_support::longspan_path(),
                                      "launch",
                                      "--max-restarts",
                                      "0",
                                      "--ranks",
                                      std::to_string(ranks),
                                      "--config",
                                      LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                                      "--data.path",
                                      data_,
                                      "--run.directory",
                                      run_,
                                      "--data.sequence-length",
                                      "64",
                                      "--run.threads",
                                      "1",
                                      "--train.validate-every",
                                      "0",
                                      "--checkpoint.every",
                                      "0",
                                      "--run.hang-timeout",
                                      std::to_string(kTimeout)};
    words.insert(words.end(), more.begin(), more.end());
    launch_ = ::fork();
    if (launch_ != 0) return;
    if (std::freopen(folder_.file("out").c_str(), "w", stdout) == nullptr ||
        std::freopen(folder_.file("err").c_str(), "w", stderr) == nullptr)
      ::_exit(126);
    std::vector<char*> argv;
    for (auto& w : words) argv.push_back(w.data());
    argv.push_back(nullptr);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  /// Waits until the run has taken so many steps, and learns who its ranks are.
  void reach(int steps, int ranks) {
    const auto end = Clock::now() + kLongest;
    while (count(read(run_ + "/metrics.jsonl"), "\n") < steps && Clock::now() < end)
      std::this_thread::sleep_for(20ms);
    ASSERT_GE(count(read(run_ + "/metrics.jsonl"), "\n"), steps) << err();
    for (int r = 0; r < ranks; ++r)
      ranks_.push_back(json::parse(read(run_ + "/watch/rank-0000" + std::to_string(r)))["process"]);
  }
  /// The status of the job, or nothing if it does not end.
  std::optional<int> wait() {
    const auto end = Clock::now() + kLongest;
    for (int status = 0; Clock::now() < end; std::this_thread::sleep_for(5ms))
      if (::waitpid(launch_, &status, WNOHANG) == launch_) {
        launch_ = 0;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      }
    return std::nullopt;
  }
  void expect_no_rank_left() const {
    for (const pid_t rank : ranks_) {
      const std::string command = read("/proc/" + std::to_string(rank) + "/cmdline");
      EXPECT_EQ(command.find(run_), std::string::npos) << "rank with process " << rank;
    }
  }
  /// What the ranks say; launch says the cause again, after what mpirun has to say.
  std::string err() const {
    std::istringstream lines(read(folder_.file("err")));
    std::string said;
    for (std::string line; std::getline(lines, line);)
      if (!line.starts_with("longspan: launch: what failed first: ")) said += line + "\n";
    return said;
  }

  /// Stops one rank in the middle of the steps.
  void stop_and_expect_named(int ranks, int stopped, const std::vector<std::string>& mesh) {
    std::vector<std::string> more = {"--train.steps", "1000000", "--log.every", "1000"};
    more.insert(more.end(), mesh.begin(), mesh.end());
    start(ranks, more);
    ASSERT_NO_FATAL_FAILURE(reach(20, ranks));
    const auto begin = Clock::now();
    ASSERT_EQ(::kill(ranks_[static_cast<std::size_t>(stopped)], SIGSTOP), 0);
    const auto status = wait();
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    ASSERT_TRUE(status.has_value()) << "the job goes on";
    EXPECT_EQ(*status, 1);
    EXPECT_GE(seconds, kTimeout);
    EXPECT_LE(seconds, kTimeout + kSlack);
    const std::string text = err();
    const std::string who = "rank " + std::to_string(stopped) + " (" + launcher::node_name() +
                            ", process " +
                            std::to_string(ranks_[static_cast<std::size_t>(stopped)]) +
                            ") is stopped (SIGSTOP, or a debugger)";
    EXPECT_EQ(count(text, who), 1) << text;
    EXPECT_EQ(count(text, "no progress for"), 1) << "one message, not one a rank:\n" << text;
    EXPECT_NE(text.find("where rank " + std::to_string(stopped) + " has not arrived"),
              std::string::npos)
        << text;
    EXPECT_NE(text.find(" of group "), std::string::npos) << text;
    EXPECT_NE(text.find(" bytes of "), std::string::npos) << text;
    expect_no_rank_left();
    EXPECT_EQ(count(read(run_ + "/watch/hang.txt"), "\n"), 1 + ranks);

    // The message's call is in the recorder of those that waited, open.
    for (int r = 0; r < ranks; ++r) {
      if (r == stopped) continue;
      const std::string name = run_ + "/watch/flight-0000" + std::to_string(r) + ".json";
      const json flight = json::parse(read(name), nullptr, false);
      ASSERT_TRUE(flight.is_object()) << name;
      EXPECT_EQ(flight["rank"], r);
      ASSERT_GT(flight["records"].size(), 50u);
      int open = 0;
      for (const json& one : flight["records"])
        if (!one.contains("end")) {
          ++open;
          EXPECT_GT(one["sequence"], 0);
          EXPECT_GT(one["step"], 10);
          EXPECT_FALSE(one["group"].get<std::string>().empty());
        }
      EXPECT_GE(open, 1) << name;
      const json& wait = flight["groups"][flight["waits_in"].get<std::size_t>()];
      EXPECT_EQ(wait["open"]["sequence"], flight["waits_for"]) << name;
    }
  }

  testing_support::TemporaryDirectory folder_;
  std::string data_ = folder_.file("d.h5"), run_ = folder_.file("run");
  pid_t launch_ = 0;
  std::vector<pid_t> ranks_;
};

TEST_F(Hang, OneOfTwoStoppedIsNamed) {
  stop_and_expect_named(2, 1, {"--mesh.context", "2"});
}

TEST_F(Hang, TheFirstRankStoppedIsNamedByAnother) {
  stop_and_expect_named(2, 0, {"--mesh.data", "2"});
}

TEST_F(Hang, OneOfFourIsNamedThoughMostWaitForOthers) {
  stop_and_expect_named(4, 3, {"--mesh.context", "2", "--mesh.tensor", "2"});
}

TEST_F(Hang, ARankThatStopsWhileTheRunIsSetUpIsNamed) {
  // So large that its weights take a while: nothing but the watchdog has written by then.
  start(2, {"--mesh.context", "2", "--model.layers", "8", "--model.width", "768", "--model.heads",
            "8"});
  const std::string account = run_ + "/watch/rank-00001";
  const auto limit = Clock::now() + kLongest;
  while (!fs::exists(account) && Clock::now() < limit) std::this_thread::sleep_for(1ms);
  ASSERT_TRUE(fs::exists(account)) << err();
  ranks_.push_back(json::parse(read(account))["process"]);
  ASSERT_EQ(::kill(ranks_[0], SIGSTOP), 0);
  const auto begin = Clock::now();
  ASSERT_FALSE(fs::exists(run_ + "/log.txt")) << "too late for this test";
  const auto status = wait();
  ASSERT_TRUE(status.has_value()) << "the job goes on";
  EXPECT_LE(std::chrono::duration<double>(Clock::now() - begin).count(), kTimeout + kSlack);
  EXPECT_EQ(*status, 1);
  EXPECT_FALSE(fs::exists(run_ + "/log.txt")) << "it got further than it was meant to";
  EXPECT_EQ(
      count(err(), "rank 1 (" + launcher::node_name() + ", process " + std::to_string(ranks_[0]) +
                       ") is stopped (SIGSTOP, or a debugger) (last heard of "),
      1)
      << err();
  EXPECT_NE(err().find(" in step 0, start)"), std::string::npos) << err();
  expect_no_rank_left();
}

TEST_F(Hang, ThousandsOfHealthyStepsNameNobody) {
  // As many steps as an hour has seconds, and a timeout that each of them could exceed only by
  // standing still.
  start(2, {"--mesh.context", "2", "--train.steps", "3600", "--model.layers", "1", "--log.every",
            "1000", "--train.validate-every", "400", "--checkpoint.every", "300"});
  const auto status = wait();
  ASSERT_TRUE(status.has_value());
  EXPECT_EQ(*status, 0) << err();
  EXPECT_EQ(count(err(), "no progress"), 0) << err();
  EXPECT_EQ(read(run_ + "/watch/question"), "0") << "nobody even had to ask";
  EXPECT_FALSE(fs::exists(run_ + "/watch/verdict"));
}

TEST_F(Hang, AJobThatIsSuspendedAsAWholeGoesOn) {
  start(2, {"--mesh.context", "2", "--train.steps", "150", "--train.stop-after", "0"});
  ASSERT_NO_FATAL_FAILURE(reach(20, 2));
  for (const pid_t rank : ranks_) ::kill(rank, SIGSTOP);
  std::this_thread::sleep_for(std::chrono::duration<double>(2 * kTimeout));
  for (const pid_t rank : ranks_) ::kill(rank, SIGCONT);
  const auto status = wait();
  ASSERT_TRUE(status.has_value());
  EXPECT_EQ(*status, 0) << err();
  EXPECT_EQ(count(err(), "no progress"), 0) << err();
}

TEST_F(Hang, AKilledRankIsReportedOnce) {
  start(2, {"--mesh.context", "2", "--train.steps", "1000000"});
  ASSERT_NO_FATAL_FAILURE(reach(20, 2));
  ::kill(ranks_[1], SIGKILL);
  const auto status = wait();
  ASSERT_TRUE(status.has_value());
  EXPECT_EQ(*status, 128 + SIGKILL);
  EXPECT_EQ(count(err(), "no progress"), 0) << err();
  EXPECT_EQ(count(err(), "ended by signal 9"), 1) << err();
  expect_no_rank_left();
}

TEST_F(Hang, ARankThatRunsHalfOfTheTimeIsAStraggler) {
  start(2, {"--mesh.context", "2", "--train.steps", "1000000", "--run.hang-timeout", "30"});
  ASSERT_NO_FATAL_FAILURE(reach(5, 2));
  const std::string line = "rank 1 on " + launcher::node_name() + " is slow: ";
  const auto end = Clock::now() + kLongest;
  while (count(err(), line) == 0 && Clock::now() < end) {
    ::kill(ranks_[1], SIGSTOP);
    std::this_thread::sleep_for(300ms);
    ::kill(ranks_[1], SIGCONT);
    std::this_thread::sleep_for(100ms);
  }
  EXPECT_EQ(count(err(), line), 1) << err();
  ::kill(launch_, SIGUSR1);
  const auto status = wait();
  ASSERT_TRUE(status.has_value());
  EXPECT_EQ(*status, 75) << err();
}

}  // namespace
}  // namespace longspan
