// label: slow
// timeout: 600
/// kill -9 at random moments, of one rank or of all, while the run starts, trains, and saves in the
/// background: the run ends at once instead of hanging, what is on disk is always good, and the
/// same command goes on to the same bits as a run nobody touched.
///
/// LONGSPAN_KILLS=200 kills so many times; LONGSPAN_KILLS_SEED other moments.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "io/checkpoint_index.hpp"
#include "io/checkpoint_reader.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

int from_environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);  // NOLINT: no other thread
  return text == nullptr ? otherwise : std::atoi(text);
}

const int kKills = from_environment("LONGSPAN_KILLS", 12);
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

std::vector<pid_t> ranks_of(const std::string& directory) {
  return testing_support::processes_of("train", directory);
}

/// Unfinished checkpoints in the directory of a run.
int temporary_folders(const std::string& run) {
  std::error_code none;
  int found = 0;
  for (const auto& owner : fs::directory_iterator(run + "/checkpoints", none)) {
    if (!owner.path().filename().string().starts_with(".owner-")) continue;
    for (const auto& entry : fs::directory_iterator(owner.path(), none)) {
      const std::string name = entry.path().filename();
      found += name.starts_with("step-") && name.ends_with(".tmp") ? 1 : 0;
    }
  }
  return found;
}

/// Every checkpoint under its final name is whole, and the link leads to one. Returns how many.
int good_checkpoints(const std::string& run) {
  const std::string directory = run + "/checkpoints";
  int found = 0;
  for (const auto& stored : io::list_checkpoints(directory)) {
    for (const auto& problem : io::CheckpointReader(stored.path).verify())
      ADD_FAILURE() << stored.path << ": " << problem.shard << " " << problem.tensor << ": "
                    << problem.what;
    ++found;
  }
  const std::string latest = directory + "/latest";
  if (fs::is_symlink(latest)) {
    EXPECT_TRUE(fs::exists(latest + "/index.h5")) << fs::read_symlink(latest);
  }
  return found;
}

/// Whether `process` has ended; it is still there to be waited for.
bool has_ended(pid_t process) {
  siginfo_t info = {};
  return ::waitid(P_PID, static_cast<id_t>(process), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
         info.si_pid != 0;
}

std::uintmax_t size_of_file(const std::string& path) {
  std::error_code none;
  const auto size = fs::file_size(path, none);
  return none ? 0 : size;
}

class Kill : public testing::Test {
 protected:
  void SetUp() override {
    const auto r = testing_support::longspan(
        {"prepare", "--kind", "text", "--output", data_, LONGSPAN_SOURCE_DIR "/model"});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  std::vector<std::string> command(const std::string& run) const {
    auto all = testing_support::launch_tiny(
        2, data_, run,
        "--max-restarts 0 --mesh.context 2 --train.steps 60 --train.validate-every 0 "
        "--checkpoint.every 1 --log.every 1000 --checkpoint.keep 2");
    all.insert(all.begin(), testing_support::longspan_path());
    return all;
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
  std::string last_words() const {
    const std::string all = read(folder_.file("output.txt"));
    return all.substr(all.size() - std::min<std::size_t>(all.size(), 3000));
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
  const std::string metrics = run + "/metrics.jsonl";
  ASSERT_EQ(testing_support::run_process(command(untouched)).status, 0);

  std::mt19937 random(20261121U +
                      static_cast<unsigned>(from_environment("LONGSPAN_KILLS_SEED", 0)));
  const auto sleep = [&](unsigned milliseconds) {
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % milliseconds));
  };
  int killed = 0, of_all = 0, in_saves = 0, before_any_step = 0, completed = 0, newest = 0;
  for (int start_number = 0; killed < kKills; ++start_number) {
    ASSERT_LT(start_number, 4 * kKills + 10) << "the run ends before it can be killed";
    const auto begun = size_of_file(metrics);
    const int left_before = temporary_folders(run);
    const pid_t launch = start(run);
    // A third each: from before MPI has started; in the middle of the steps; while a save is under
    // way. A machine under load starts late: the moment is counted from what is seen.
    const auto until = [&](auto&& seen) {
      for (const auto end = Clock::now() + 20s; Clock::now() < end && !seen();)
        std::this_thread::sleep_for(1ms);
    };
    const auto kind = random() % 3;
    if (kind == 0) sleep(900);
    if (kind > 0) until([&] { return size_of_file(metrics) > begun || has_ended(launch); });
    if (kind > 0) sleep(300);
    if (kind == 2) {
      until([&] { return temporary_folders(run) > left_before || has_ended(launch); });
      sleep(20);
    }
    // There may be no rank yet: as soon as there is one.
    std::vector<pid_t> ranks;
    until([&] { return !(ranks = ranks_of(run)).empty() || has_ended(launch); });
    const bool all = random() % 2 == 0;
    if (!ranks.empty() && !all) std::swap(ranks[0], ranks[random() % ranks.size()]);
    if (!ranks.empty() && !all) ranks.resize(1);
    int hit = 0;
    for (const pid_t rank : ranks) hit += ::kill(rank, SIGKILL) == 0;
    const auto status = wait_for(launch, kLongestEnd);
    if (!status) {
      ::kill(launch, SIGKILL);
      FAIL() << "the job did not end " << kLongestEnd.count() << " s after " << hit
             << " ranks were killed:\n"
             << last_words();
    }
    // Nothing but a kill ends it early: every state it was left in can be continued.
    if (hit == 0) {
      EXPECT_EQ(*status, 0) << last_words();
    }
    if (hit > 0 && *status != 0) {
      ++killed;
      of_all += all ? 1 : 0;
      in_saves += temporary_folders(run) > 0 ? 1 : 0;
      before_any_step += size_of_file(metrics) == begun ? 1 : 0;
    }
    // One that sits in the disk dies when that lets it go.
    for (const auto end = Clock::now() + kLongestEnd; Clock::now() < end && !ranks_of(run).empty();)
      std::this_thread::sleep_for(5ms);
    EXPECT_TRUE(ranks_of(run).empty()) << "ranks outlive the job";
    if (good_checkpoints(run) > 0) {
      const int step = std::stoi(fs::read_symlink(run + "/checkpoints/latest").string().substr(5));
      EXPECT_GE(step, newest) << "a checkpoint was lost";
      newest = step;
    } else {
      EXPECT_EQ(newest, 0) << "all checkpoints were lost";
    }
    if (*status == 0) {  // it came through
      EXPECT_EQ(numbers_of(metrics), numbers_of(untouched + "/metrics.jsonl"));
      fs::remove_all(run);
      newest = 0;
      ++completed;
    }
    if (HasFailure()) FAIL() << "after kill " << killed << ":\n" << last_words();
  }
  const auto last = testing_support::run_process(command(run));
  ASSERT_EQ(last.status, 0) << last.out << last.err;
  EXPECT_EQ(numbers_of(metrics), numbers_of(untouched + "/metrics.jsonl"));
  EXPECT_EQ(temporary_folders(run), 0);
  EXPECT_GT(in_saves, 0) << "no kill met a save";
  std::printf(
      "%d kills (%d of all ranks, %d of one): %d left an unfinished checkpoint behind, %d came "
      "before "
      "a step; %d runs came through between them\n",
      killed, of_all, killed - of_all, in_saves, before_any_step, completed);
}

}  // namespace
}  // namespace longspan
