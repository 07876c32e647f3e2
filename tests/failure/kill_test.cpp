// label: slow
// timeout: 600
/// kill -9 at random moments, of one rank or of all: the run ends at once instead of hanging, what
/// is on disk is always good, and the same command goes on to the same bits as a run nobody
/// touched.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr int kKills = 12;
constexpr auto kLongestEnd = 30s;  ///< from a kill to the end of the whole job, on a loaded machine

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Steps, losses and gradient norms as written: equal texts are equal bits.
std::vector<std::string> numbers_of(const std::string& metrics) {
  std::vector<std::string> rows;
  std::ifstream lines(metrics);
  for (std::string line; std::getline(lines, line);) {
    const auto j = nlohmann::json::parse(line);
    rows.push_back(j["step"].dump() + " " + j["loss"].dump() + " " + j["grad_norm"].dump());
  }
  return rows;
}

/// Processes that run `longspan train` in `directory`.
std::vector<pid_t> ranks_of(const std::string& directory) {
  std::vector<pid_t> found;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    pid_t pid = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), pid).ec != std::errc()) continue;
    const std::string command = read(entry.path().string() + "/cmdline");
    const auto has = [&](std::string word) {
      return command.find('\0' + word + '\0') != std::string::npos;
    };
    // mpirun has the same words in its own command line: a rank's begins with the program.
    if (command.starts_with(testing_support::longspan_path() + '\0') && has("train") &&
        has(directory))
      found.push_back(pid);
  }
  return found;
}

class Kill : public testing::Test {
 protected:
  void SetUp() override {
    const auto r = testing_support::longspan(
        {"prepare", "--kind", "text", "--output", data_, LONGSPAN_SOURCE_DIR "/model"});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  std::vector<std::string> command(const std::string& run) const {
    return {testing_support::longspan_path(),
            "launch",
            "--max-restarts",
            "0",
            "--ranks",
            "2",
            "--config",
            LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
            "--data.path",
            data_,
            "--run.directory",
            run,
            "--data.sequence-length",
            "64",
            "--mesh.context",
            "2",
            "--train.steps",
            "60",
            "--train.validate-every",
            "0",
            "--checkpoint.every",
            "1",
            "--checkpoint.keep",
            "2"};
  }
  /// Starts the command with its output in a file; the caller waits for the process.
  pid_t start(const std::string& run) const {
    const std::string log = folder_.file("output.txt");
    const auto arguments = command(run);
    const pid_t child = ::fork();
    if (child != 0) return child;
    if (std::freopen(log.c_str(), "a", stdout) == nullptr ||
        std::freopen(log.c_str(), "a", stderr) == nullptr)
      ::_exit(126);
    std::vector<char*> argv;
    for (const auto& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  /// The status of `process`, or nothing if it has not ended in time.
  static std::optional<int> wait_for(pid_t process, Clock::duration longest) {
    const auto end = Clock::now() + longest;
    for (int status = 0; Clock::now() < end; std::this_thread::sleep_for(5ms))
      if (::waitpid(process, &status, WNOHANG) == process)
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return std::nullopt;
  }

  testing_support::TemporaryDirectory folder_;
  std::string data_ = folder_.file("d.h5");
};

TEST_F(Kill, AtAnyMomentNeverHangsNorLosesNorChangesABit) {
  const std::string untouched = folder_.file("untouched"), run = folder_.file("run");
  ASSERT_EQ(testing_support::run_process(command(untouched)).status, 0);

  std::mt19937 random(20261121);  // NOLINT: the same moments every time, as far as clocks allow
  int killed = 0;
  for (int start_number = 0; killed < kKills; ++start_number) {
    ASSERT_LT(start_number, 4 * kKills) << "the run ends before it can be killed";
    const pid_t launch = start(run);
    // From before MPI has started to the middle of the steps and their saves.
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 900));
    std::vector<pid_t> ranks = ranks_of(run);
    if (!ranks.empty() && random() % 2 == 0) ranks.erase(ranks.begin() + 1, ranks.end());
    int hit = 0;
    for (const pid_t rank : ranks) hit += ::kill(rank, SIGKILL) == 0;
    const auto status = wait_for(launch, kLongestEnd);
    if (!status) {
      ::kill(launch, SIGKILL);
      FAIL() << "the job did not end " << kLongestEnd.count() << " s after " << hit
             << " ranks were killed:\n"
             << read(folder_.file("output.txt"));
    }
    if (hit > 0 && *status != 0) ++killed;
    if (*status == 0) fs::remove_all(run);  // it came through: begin again
    EXPECT_TRUE(ranks_of(run).empty()) << "ranks outlive the job";
    // What is there, if anything, is whole.
    if (fs::exists(run + "/checkpoints/latest")) {
      const auto verified =
          testing_support::longspan({"inspect", run + "/checkpoints/latest", "--verify"});
      EXPECT_EQ(verified.status, 0) << verified.out << verified.err;
    }
  }
  const auto last = testing_support::run_process(command(run));
  ASSERT_EQ(last.status, 0) << last.out << last.err;
  EXPECT_EQ(numbers_of(run + "/metrics.jsonl"), numbers_of(untouched + "/metrics.jsonl"));
}

}  // namespace
}  // namespace longspan
