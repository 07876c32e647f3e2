/// longspan stop: what it does to a run that runs, waits, or has ended. That the ranks heed it is
/// in failure/launch_failure_test.cpp.
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "launcher/run_history.hpp"
#include "launcher/run_record.hpp"
#include "launcher/run_state.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

namespace fs = std::filesystem;
using testing_support::longspan;

class Stop : public testing::Test {
 protected:
  void SetUp() override {
    path_ = std::getenv("PATH");
    fs::create_directories(folder_.file("bin"));
    ::setenv("PATH", (folder_.file("bin") + ":" + path_).c_str(), 1);
  }
  void TearDown() override { ::setenv("PATH", path_.c_str(), 1); }
  void script(const std::string& name, const std::string& text) const {
    const std::string file = folder_.file("bin/" + name);
    std::ofstream(file) << "#!/bin/sh\n" << text << "\n";
    fs::permissions(file, fs::perms::owner_all);
  }
  testing_support::TemporaryDirectory folder_;
  std::string run_ = folder_.file("run"), path_;
};

TEST_F(Stop, ARunThatHasEndedIsLeftAlone) {
  append_event(run_, {.event = "ended", .status = 0});
  const auto result = longspan({"stop", run_, "--wait"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("is not running (done, step 0): nothing to stop"), std::string::npos)
      << result.out;
  EXPECT_FALSE(stop_requested(run_));
}

TEST_F(Stop, ARunningOneIsAsked) {
  append_event(run_, {.event = "started", .where = this_host_and_process()});
  std::FILE* lock = std::fopen((run_ + "/.lock").c_str(), "w");
  ASSERT_EQ(::flock(::fileno(lock), LOCK_EX), 0);
  const auto result = longspan({"stop", run_});
  std::fclose(lock);
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("asked to save and end"), std::string::npos) << result.out;
  EXPECT_TRUE(stop_requested(run_));
}

TEST_F(Stop, AJobThatWaitsIsCancelled) {
  append_event(run_, {.event = "submitted", .job = "12"});
  const std::string cancelled = folder_.file("cancelled");
  script("squeue", "test -e " + cancelled + " || echo '12|PENDING|5:00|Priority'");
  script("scancel", "echo \"$*\" > " + cancelled);
  const auto result = longspan({"stop", run_, "--wait"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("job 12 was pending: cancelled"), std::string::npos) << result.out;
  std::ifstream file(cancelled);
  const std::string words{std::istreambuf_iterator<char>(file), {}};
  // Should it start at this very moment, it is not killed but finds the wish.
  EXPECT_EQ(words, "--state=PENDING 12\n");
  EXPECT_TRUE(stop_requested(run_));
  EXPECT_EQ(status_of(read_run(run_), std::nullopt, 0).state, RunState::kStopped);
}

TEST_F(Stop, AJobThatStartsMeanwhileIsAsked) {
  append_event(run_, {.event = "submitted", .job = "12"});
  const std::string cancelled = folder_.file("cancelled");
  script("squeue", "test -e " + cancelled +
                       " && echo '12|RUNNING|5:00|None' || echo '12|PENDING|5:00|Priority'");
  script("scancel", "touch " + cancelled);
  const auto result = longspan({"stop", run_});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("has started meanwhile; it was asked to save and end"),
            std::string::npos)
      << result.out;
  EXPECT_TRUE(stop_requested(run_));
}

TEST_F(Stop, WhatScancelSaysIsPassedOn) {
  append_event(run_, {.event = "submitted", .job = "12"});
  script("squeue", "echo '12|PENDING|5:00|Priority'");
  script("scancel", "echo 'scancel: error: Access/permission denied' >&2; exit 1");
  const auto result = longspan({"stop", run_});
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("permission denied"), std::string::npos) << result.err;
}

TEST_F(Stop, ATrainThatTheUserStartsAgainGoesOn) {
  const auto prepared = longspan({"prepare", "--kind", "text", "--output", folder_.file("d.h5"),
                                  LONGSPAN_SOURCE_DIR "/slurm"});
  ASSERT_EQ(prepared.status, 0) << prepared.err;
  fs::create_directories(run_);
  request_stop(run_);
  const auto result =
      longspan({"train", "--config", LONGSPAN_SOURCE_DIR "/configs/tiny.ini", "--data.path",
                folder_.file("d.h5"), "--run.directory", run_, "--data.sequence-length", "32",
                "--train.steps", "2", "--train.validate-every", "0", "--run.threads", "1"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_FALSE(stop_requested(run_));
}

TEST_F(Stop, ItWantsAName) {
  EXPECT_EQ(longspan({"stop"}).status, 2);
  EXPECT_EQ(longspan({"stop", folder_.file("nothing")}).status, 2);
}

}  // namespace
}  // namespace longspan::launcher
