// label: slow
// timeout: 120
/// launch over several starts, with a script in mpirun's place that does what a test wants: what
/// the real one and real ranks do is in launch_test.cpp and failure/launch_failure_test.cpp.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "launcher/run_history.hpp"
#include "launcher/run_state.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

namespace fs = std::filesystem;
using testing_support::ProcessResult;

class Supervision : public testing::Test {
 protected:
  void SetUp() override {
    path_ = std::getenv("PATH");
    fs::create_directory(folder_.file("bin"));
    ::setenv("PATH", (folder_.file("bin") + ":" + path_).c_str(), 1);
    ::setenv("RUN", run_.c_str(), 1);
    ::setenv("CALLS", calls_.c_str(), 1);
  }
  void TearDown() override { ::setenv("PATH", path_.c_str(), 1); }
  /// $1: which start this is, from 1.
  void mpirun_does(const std::string& script) const {
    const std::string file = folder_.file("bin/mpirun");
    std::ofstream(file) << "#!/bin/sh\n"
                           "echo \"restart=$LONGSPAN_RESTART $*\" >> $CALLS\n"
                           "mkdir -p $RUN\n"
                           "set -- $(wc -l < $CALLS)\n"
                           "echo '[1,0]<stdout>:the run is set up'\n"
                           "step() { echo \"{\\\"step\\\":$1,\\\"loss\\\":1}\" >> "
                           "$RUN/metrics.jsonl; }\n"
                        << script << "\n";
    fs::permissions(file, fs::perms::owner_all);
  }
  ProcessResult launch(std::vector<std::string> more = {}) const {
    std::vector<std::string> words = {"launch", "--ranks", "1", "--run.directory", run_};
    words.insert(words.end(), more.begin(), more.end());
    return testing_support::longspan(words);
  }
  std::vector<std::string> calls() const {
    std::vector<std::string> lines;
    std::ifstream file(calls_);
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }
  std::string events() const {
    std::string all;
    for (const RunEvent& event : read_history(run_)) all += event.event + " ";
    return all;
  }

  testing_support::TemporaryDirectory folder_;
  std::string run_ = folder_.file("run"), calls_ = folder_.file("calls"), path_;
};

TEST_F(Supervision, ACrashIsFollowedByARestart) {
  mpirun_does("test $1 = 1 || exit 0; step 4; echo '[1,0]<stderr>:longspan: oops' >&2; exit 1");
  const auto result = launch({"--checkpoint.resume", "never"});
  EXPECT_EQ(result.status, 0) << result.err;
  ASSERT_EQ(calls().size(), 2u);
  EXPECT_TRUE(calls()[0].starts_with("restart=0 ")) << calls()[0];
  EXPECT_TRUE(calls()[1].starts_with("restart=1 ")) << calls()[1];
  // never: what the first start has saved must not be in the way of the second.
  EXPECT_EQ(calls()[0].find("--checkpoint.resume auto"), std::string::npos);
  EXPECT_NE(calls()[1].find("--checkpoint.resume auto"), std::string::npos) << calls()[1];
  EXPECT_EQ(result.err,
            "longspan: oops\n"
            "longspan: launch: oops; restart 1 of at most 10 in 1 s, from the beginning\n");
  EXPECT_EQ(events(), "restarted ");
}

TEST_F(Supervision, ItGivesUpAfterTheSameStepTwice) {
  mpirun_does("step 4; echo '[1,0]<stderr>:longspan: oops' >&2; exit 7");
  const auto result = launch();
  EXPECT_EQ(result.status, 7);
  EXPECT_EQ(calls().size(), 2u);
  EXPECT_NE(result.err.find("longspan: launch: gave up: step 5 has failed twice"),
            std::string::npos)
      << result.err;
  EXPECT_TRUE(result.err.ends_with(": oops\n")) << result.err;
  EXPECT_EQ(events(), "restarted gave-up ");
  EXPECT_EQ(status_of(read_run(run_), std::nullopt, 0).state, RunState::kFailed);
}

TEST_F(Supervision, ItGivesUpWhenRestartsAreUsedUp) {
  mpirun_does("step $1; exit 1");
  const auto result = launch({"--max-restarts", "1"});
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(calls().size(), 2u);
  EXPECT_NE(result.err.find("gave up: 1 restart (--max-restarts) did not help"), std::string::npos)
      << result.err;
}

TEST_F(Supervision, WhatIsAtFaultForGoodIsNotTriedAgain) {
  for (const int status : {2, 3}) {
    fs::remove(calls_);
    mpirun_does(
        "echo '[1,1]<stderr>:longspan: bad value' >&2; echo '[1,0]<stderr>:noise' >&2; exit " +
        std::to_string(status));
    const auto result = launch();
    EXPECT_EQ(result.status, status);
    EXPECT_EQ(calls().size(), 1u);
    // The message that matters is the last one, whatever came after it.
    EXPECT_EQ(result.err,
              "[1] longspan: bad value\nnoise\n"
              "longspan: launch: what failed first: bad value\n");
  }
}

TEST_F(Supervision, AStopOnPurposeIsNotTriedAgain) {
  mpirun_does("exit 75");
  EXPECT_EQ(launch().status, 75);
  EXPECT_EQ(calls().size(), 1u);
}

TEST_F(Supervision, TheWishToStopEndsThePause) {
  // It comes while launch waits to start the ranks again.
  mpirun_does("(sleep 0.3; touch $RUN/stop) > /dev/null 2>&1 & exit 1");
  const auto result = launch();
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(calls().size(), 1u);
  EXPECT_NE(result.err.find("not started again: longspan stop was asked for"), std::string::npos)
      << result.err;
}

TEST_F(Supervision, OnlyTheUsersOwnStartWithdrawsTheWish) {
  fs::create_directory(run_);
  request_stop(run_);
  // The second start is launch's own: a wish that came during the first stays.
  mpirun_does("test -e $RUN/stop && exit 9; touch $RUN/stop; exit 1");
  EXPECT_EQ(launch().status, 1);
  EXPECT_EQ(calls().size(), 1u);
  EXPECT_TRUE(stop_requested(run_));
}

TEST_F(Supervision, TheHostfileIsCheckedAndPassedOn) {
  mpirun_does("exit 0");
  const std::string hosts = folder_.file("hosts");
  std::ofstream(hosts) << "node77 slots=2\nnode78 slots=2\n";
  // As many ranks as there are slots.
  auto result = testing_support::longspan({"launch", "--hostfile", hosts, "--run.directory", run_});
  EXPECT_EQ(result.status, 0) << result.err;
  ASSERT_EQ(calls().size(), 1u);
  EXPECT_NE(calls()[0].find("--hostfile " + hosts), std::string::npos) << calls()[0];
  EXPECT_NE(calls()[0].find("-x LONGSPAN_RESTART"), std::string::npos) << calls()[0];
  EXPECT_NE(calls()[0].find(" -n 4 "), std::string::npos) << calls()[0];
  result = launch({"--hostfile", hosts, "--ranks", "5"});
  EXPECT_EQ(result.status, 2);
  EXPECT_NE(result.err.find("has 4 slots"), std::string::npos) << result.err;
  EXPECT_EQ(calls().size(), 1u);
}

}  // namespace
}  // namespace longspan::launcher
