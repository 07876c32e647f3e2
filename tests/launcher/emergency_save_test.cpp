// label: slow
// timeout: 300
/// A run that is asked to stop, at the moments when that is awkward: it saves at the next step
/// boundary on all ranks, leaves with status 75, and the same command goes on to the bits of a run
/// nobody stopped.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <nlohmann/json.hpp>
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
using testing_support::longspan;
using testing_support::processes_of;
using testing_support::ProcessResult;

/// launch passes every stop signal on as this one.
constexpr const char* kPassedOn = "SIGUSR1 was received";

class Stop : public testing::Test {
 protected:
  void SetUp() override {
    const auto r =
        longspan({"prepare", "--kind", "text", "--output", data_, LONGSPAN_SOURCE_DIR "/launcher"});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  ProcessResult train(const std::string& run, std::vector<std::string> more = {}) const {
    return longspan(testing_support::launch_tiny(
        2, data_, run, "--mesh.context 2 --train.steps 40 --checkpoint.every 2 --log.every 1000",
        more));
  }
  /// Trains and does `act` once `moment` has come.
  ProcessResult train_and(const std::string& run, const std::function<bool()>& moment,
                          const std::function<void()>& act,
                          const std::vector<std::string>& more = {}) const {
    auto job = std::async(std::launch::async, [&] { return train(run, more); });
    while (!moment() && job.wait_for(1ms) != std::future_status::ready) {
    }
    act();
    return job.get();
  }
  static void signal_launch(const std::string& run, int signal) {
    for (const pid_t process : processes_of("launch", run)) ::kill(process, signal);
  }
  static std::vector<std::string> numbers_of(const std::string& run) {
    std::vector<std::string> rows;
    std::ifstream lines(run + "/metrics.jsonl");
    for (std::string line; std::getline(lines, line);) {
      const auto j = nlohmann::json::parse(line);
      rows.push_back(j["step"].dump() + " " + j["loss"].dump() + " " + j["grad_norm"].dump());
    }
    return rows;
  }
  static bool saving(const std::string& run) {
    std::error_code none;
    for (const auto& owner : fs::directory_iterator(run + "/checkpoints", none)) {
      if (!owner.path().filename().string().starts_with(".owner-")) continue;
      for (const auto& entry : fs::directory_iterator(owner.path(), none))
        if (entry.path().filename().string().starts_with("step-")) return true;
    }
    return false;
  }
  /// Stopped as asked, all of it on disk, and the rest is that of a run without a break.
  void expect_good_end(const std::string& run, const ProcessResult& r, const std::string& why,
                       const std::vector<std::string>& more = {}) const {
    EXPECT_EQ(r.status, 75) << r.err << r.out;
    EXPECT_EQ(r.err, "");
    EXPECT_NE(r.out.find(": " + why), std::string::npos) << r.out;
    const auto stored = io::list_checkpoints(run + "/checkpoints");
    const auto steps = numbers_of(run).size();
    if (steps > 0) {
      ASSERT_FALSE(stored.empty());
      EXPECT_EQ(stored.back().step, static_cast<std::int64_t>(steps))
          << "the last step was not saved";
    }
    for (const auto& each : stored)
      EXPECT_TRUE(io::CheckpointReader(each.path).verify().empty()) << each.path;
    EXPECT_FALSE(saving(run));
    const auto rest = train(run, more);
    EXPECT_EQ(rest.status, 0) << rest.err;
    EXPECT_EQ(numbers_of(run), numbers_of(whole_));
  }

  testing_support::TemporaryDirectory folder_;
  std::string data_ = folder_.file("d.h5"), whole_ = folder_.file("whole");
};

TEST_F(Stop, AtAnyMoment) {
  ASSERT_EQ(train(whole_).status, 0);
  {  // Before the first step, or in it: the log begins when the ranks have met.
    const std::string run = folder_.file("start");
    const auto r = train_and(
        run, [&] { return fs::exists(run + "/log.txt"); }, [&] { signal_launch(run, SIGTERM); });
    expect_good_end(run, r, kPassedOn);
  }
  {  // While a save is under way, and again while that is waited for.
    const std::string run = folder_.file("save");
    const auto r = train_and(
        run, [&] { return saving(run); },
        [&] {
          signal_launch(run, SIGTERM);
          std::this_thread::sleep_for(5ms);
          signal_launch(run, SIGTERM);
        });
    expect_good_end(run, r, kPassedOn);
  }
  {  // One rank alone has heard it.
    const std::string run = folder_.file("one");
    const auto r = train_and(
        run, [&] { return numbers_of(run).size() > 2; },
        [&] {
          const auto ranks = processes_of("train", run);
          if (!ranks.empty()) ::kill(ranks.back(), SIGUSR1);
        });
    expect_good_end(run, r, kPassedOn);
  }
  {  // In a validation, which takes most of the time here.
    const std::vector<std::string> validating = {"--train.validate-every", "1",
                                                 "--train.validate-sequences", "64"};
    const std::string run = folder_.file("validation");
    const auto r = train_and(
        run, [&] { return numbers_of(run).size() > 1; }, [&] { signal_launch(run, SIGINT); },
        validating);
    expect_good_end(run, r, kPassedOn, validating);
  }
}

TEST_F(Stop, TimeIsUp) {
  ASSERT_EQ(train(whole_).status, 0);
  // So short that it is up after the first step of every start: each start gets on by one.
  const std::string run = folder_.file("limit");
  for (int start = 1; start <= 2; ++start) {
    const auto r = train(run, {"--train.time-limit", "1s"});
    EXPECT_EQ(r.status, 75) << r.err << r.out;
    EXPECT_EQ(numbers_of(run).size(), static_cast<std::size_t>(start));
    EXPECT_NE(r.out.find("stopped after step " + std::to_string(start) +
                         ": train.time-limit=0:00:01 is near"),
              std::string::npos)
        << r.out;
  }
  const auto r = train(run, {"--train.time-limit", "10h"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(numbers_of(run), numbers_of(whole_));
}

}  // namespace
}  // namespace longspan
