/// Where a run stands: from its files, its history and the queue; and what status makes of it.
#include "launcher/status.hpp"

#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "launcher/queue.hpp"
#include "launcher/run_record.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

namespace fs = std::filesystem;
using testing_support::longspan_path;
using testing_support::run_process;

/// A process id that no process has: the largest there can be, and one.
constexpr int kNobody = 4194305;

std::string metrics_line(int step, double loss = 2.5) {
  return nlohmann::json{
             {"step", step}, {"loss", loss}, {"step_seconds", 0.5}, {"tokens_per_second", 1000.0}}
             .dump() +
         "\n";
}

class Status : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(run_); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(run_ + "/" + name, std::ios::app | std::ios::binary) << text;
  }
  void event(RunEvent event) const { append_event(run_, std::move(event)); }
  RunStatus status(const Queue& queue = std::nullopt) const {
    return status_of(read_run(run_), queue, now());
  }
  static double now() {
    using namespace std::chrono;
    return duration<double>(system_clock::now().time_since_epoch()).count();
  }
  static std::string elsewhere() { return "another-node:1"; }
  static std::string dead() {
    const std::string me = this_host_and_process();
    return me.substr(0, me.rfind(':') + 1) + std::to_string(kNobody);
  }

  testing_support::TemporaryDirectory folder_;
  std::string run_ = folder_.file("runs/one");
};

TEST_F(Status, EveryEndHasItsState) {
  event({.event = "started", .where = dead()});
  EXPECT_EQ(status().state, RunState::kGone);
  event({.event = "ended", .status = 75});
  EXPECT_EQ(status().state, RunState::kStopped);
  event({.event = "ended", .status = 0});
  EXPECT_EQ(status().state, RunState::kDone);
  event({.event = "ended", .status = 1, .note = "rank 3: no"});
  EXPECT_EQ(status().state, RunState::kFailed);
  EXPECT_EQ(status().note, "rank 3: no");
  event({.event = "restarted", .where = dead()});
  EXPECT_EQ(status().state, RunState::kGone);
  event({.event = "restarted", .where = this_host_and_process()});
  EXPECT_EQ(status().state, RunState::kRestarting);
  event({.event = "gave-up", .note = "step 5 has failed twice"});
  EXPECT_EQ(status().state, RunState::kFailed);
}

TEST_F(Status, WhoHoldsTheDirectoryRuns) {
  event({.event = "started", .where = this_host_and_process()});
  EXPECT_EQ(status().state, RunState::kGone) << "nobody holds it";
  std::FILE* lock = std::fopen((run_ + "/.lock").c_str(), "w");
  ASSERT_EQ(::flock(::fileno(lock), LOCK_EX), 0);
  EXPECT_EQ(status().state, RunState::kRunning);
  std::fclose(lock);
  EXPECT_EQ(status().state, RunState::kGone);
}

TEST_F(Status, OnAnotherMachineItRunsAsLongAsItWrites) {
  event({.event = "started", .where = elsewhere()});
  write("metrics.jsonl", metrics_line(3));
  const RunFacts facts = read_run(run_);
  EXPECT_EQ(status_of(facts, std::nullopt, now()).state, RunState::kRunning);
  EXPECT_EQ(status_of(facts, std::nullopt, now() + 3600).state, RunState::kGone);
}

TEST_F(Status, TheQueueKnowsMore) {
  const auto with = [&](const std::string& state) {
    return status(std::map<std::string, QueuedJob>{{"12", {state, 60, "Priority"}}});
  };
  const Queue without = std::map<std::string, QueuedJob>{};
  event({.event = "submitted", .job = "12"});
  EXPECT_EQ(status().state, RunState::kPending) << "no queue to ask";
  EXPECT_EQ(with("PENDING").state, RunState::kPending);
  EXPECT_EQ(with("PENDING").note, "Priority");
  EXPECT_EQ(with("RUNNING").state, RunState::kRunning);
  EXPECT_EQ(status(without).state, RunState::kGone);
  event({.event = "started", .job = "12", .where = elsewhere()});
  EXPECT_EQ(with("RUNNING").state, RunState::kRunning);
  EXPECT_EQ(with("PENDING").state, RunState::kRequeued) << "a node was lost";
  EXPECT_EQ(status(without).state, RunState::kGone);
  event({.event = "ended", .job = "12", .status = 75});
  EXPECT_EQ(with("PENDING").state, RunState::kRequeued);
  EXPECT_EQ(status(without).state, RunState::kStopped);
  event({.event = "requeued", .job = "12"});
  EXPECT_EQ(with("PENDING").state, RunState::kRequeued);
  EXPECT_EQ(status().state, RunState::kRequeued);
  EXPECT_EQ(status(without).state, RunState::kGone);
  event({.event = "chained", .job = "13"});
  EXPECT_EQ(status().job, "13");
  EXPECT_EQ(status().restarts, 1);
}

TEST_F(Status, RestartsAreThoseThatNobodyAskedFor) {
  event({.event = "started", .restart = 0});
  event({.event = "restarted", .restart = 1});
  event({.event = "started", .restart = 1});
  event({.event = "ended", .restart = 1, .status = 75});
  event({.event = "started", .restart = 0});
  EXPECT_EQ(status().restarts, 1);
}

TEST_F(Status, TheEndOfALongFileIsEnough) {
  std::string text;
  for (int step = 1; step <= 20000; ++step) text += metrics_line(step, step);
  write("metrics.jsonl", text + R"({"step":20001,"lo)");  // a crash
  const auto tail = read_metrics_tail(run_ + "/metrics.jsonl");
  ASSERT_TRUE(tail);
  EXPECT_EQ(tail->step, 20000);
  EXPECT_EQ(tail->loss, 20000);
  EXPECT_EQ(tail->step_seconds, 0.5);
  EXPECT_EQ(tail->tokens_per_second, 1000);
  EXPECT_FALSE(read_metrics_tail(run_ + "/none"));
  EXPECT_FALSE(read_metrics_tail(run_));
  write("empty", "");
  EXPECT_FALSE(read_metrics_tail(run_ + "/empty"));
  write("odd", "{}\nno json\n[1]\n{\"step\":\"x\"}\n");
  EXPECT_FALSE(read_metrics_tail(run_ + "/odd"));
}

TEST_F(Status, TheNewestCheckpointIsTheOneWithItsFinalName) {
  EXPECT_EQ(newest_checkpoint_seen(run_).step, -1);
  for (const char* name : {"step-0000000040", "step-0000000200", ".step-0000000300.tmp",
                           "step-0000000300.new", "step-x000000400"})
    fs::create_directories(run_ + "/checkpoints/" + name);
  EXPECT_EQ(newest_checkpoint_seen(run_).step, 200);
  EXPECT_NEAR(newest_checkpoint_seen(run_).written, now(), 60);
}

TEST_F(Status, TheTimeToGoComesFromTheLastSteps) {
  write("config.ini", "# old\n[train]\nsteps = 30\n[future]\nunknown = 1\n");
  write("metrics.jsonl", metrics_line(9) + metrics_line(10));
  event({.event = "submitted", .job = "12"});
  EXPECT_EQ(status().eta_seconds, 0.5 * 20);
  event({.event = "ended", .status = 75});
  EXPECT_EQ(status().eta_seconds, -1) << "it does not go on";
}

TEST(Squeue, ItsWordsAreRead) {
  const auto jobs =
      parse_squeue("12|RUNNING|4:59|None\n13|PENDING|1-00:00:00|Dependency\nbroken\n");
  ASSERT_EQ(jobs.size(), 2u);
  EXPECT_EQ(jobs.at("12").seconds_left, 299);
  EXPECT_EQ(jobs.at("13").seconds_left, 86400);
  EXPECT_EQ(jobs.at("13").reason, "Dependency");
  EXPECT_EQ(parse_slurm_duration("UNLIMITED"), -1);
  EXPECT_EQ(parse_slurm_duration("1-02:03:04"), 86400 + 2 * 3600 + 3 * 60 + 4);
  EXPECT_EQ(parse_slurm_duration("42"), 42);
}

TEST(Ask, WhatDoesNotAnswerIsLeft) {
  EXPECT_FALSE(ask({"/no/such/program"}, std::chrono::seconds(10)));
  EXPECT_FALSE(ask({"sleep", "30"}, std::chrono::milliseconds(100)));
  const auto answer = ask({"sh", "-c", "echo out; echo err >&2; exit 3"}, std::chrono::seconds(10));
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->status, 3);
  EXPECT_EQ(answer->out, "out\n");
  EXPECT_EQ(answer->errors, "err\n");
}

/// The command, in a folder with runs/, with a script in squeue's place that counts its calls.
class StatusCommand : public Status {
 protected:
  void SetUp() override {
    Status::SetUp();
    path_ = std::getenv("PATH");
    before_ = fs::current_path();
    fs::current_path(fs::path(run_).parent_path().parent_path());
    fs::create_directory("bin");
    std::ofstream("bin/squeue") << "#!/bin/sh\necho \"$*\" >> " << fs::current_path().string()
                                << "/calls\ncat " << fs::current_path().string() << "/answer\n";
    fs::permissions("bin/squeue", fs::perms::owner_all);
    ::setenv("PATH", (fs::current_path().string() + "/bin:" + path_).c_str(), 1);
  }
  void TearDown() override {
    fs::current_path(before_);
    ::setenv("PATH", path_.c_str(), 1);
  }
  std::string path_;
  fs::path before_;
};

TEST_F(StatusCommand, ShowsARowForEachRun) {
  write("config.ini", "[train]\nsteps = 3000\n");
  write("metrics.jsonl", metrics_line(1200));
  event({.event = "submitted", .job = "12"});
  event({.event = "started", .job = "12", .restart = 2, .where = elsewhere()});
  fs::create_directories("runs/two/checkpoints/step-0000000007");
  append_event("runs/two", {.event = "ended", .job = "13", .status = 75});
  fs::create_directories("runs/no-run");
  std::ofstream("answer") << "12|RUNNING|5:00|None\n";
  const auto text = run_process({longspan_path(), "status"});
  EXPECT_EQ(text.status, 0) << text.err;
  EXPECT_EQ(testing_support::count_lines(text.out), 3) << text.out;
  for (const char* part : {"runs/one", "running", "12 RUNNING", "1,200 / 3,000", "2.5000", "1000",
                           "> limit,", "runs/two", "stopped", "7, 0 s ago"})
    EXPECT_NE(text.out.find(part), std::string::npos) << part << "\n" << text.out;
  EXPECT_EQ(text.out.find("no-run"), std::string::npos) << text.out;
  std::ifstream calls("calls");
  std::string call, more;
  ASSERT_TRUE(std::getline(calls, call));
  EXPECT_NE(call.find("--jobs=12,13"), std::string::npos) << call;
  EXPECT_FALSE(std::getline(calls, more)) << "one call for all";

  const auto json =
      nlohmann::json::parse(run_process({longspan_path(), "status", "--json", "one"}).out);
  ASSERT_EQ(json["runs"].size(), 1u);
  const auto& run = json["runs"][0];
  EXPECT_EQ(run["state"], "running");
  EXPECT_EQ(run["step"], 1200);
  EXPECT_EQ(run["restarts"], 2);
  EXPECT_EQ(run["job_seconds_left"], 300);
  EXPECT_EQ(run["eta_seconds"], 900);
}

TEST_F(StatusCommand, AnUnknownRunHasANearestName) {
  write("config.ini", "");
  const auto result = run_process({longspan_path(), "status", "onee"});
  EXPECT_EQ(result.status, 2);
  EXPECT_NE(result.err.find("did you mean one?"), std::string::npos) << result.err;
}

TEST_F(StatusCommand, FollowSaysWhatChangesAndEndsWithTheRun) {
  event({.event = "submitted", .job = "12"});
  std::ofstream("answer") << "12|PENDING|5:00|Priority\n";
  std::ofstream("change.sh")
      << "sleep 0.5; echo '12|RUNNING|4:00|None' > answer; sleep 0.5; "
         "echo '{\"time\":1,\"event\":\"ended\",\"job\":\"12\",\"status\":0}' "
         ">> runs/one/history.jsonl";
  const auto result = run_process(
      {"timeout", "30", "sh", "-c",
       "sh change.sh & exec " + longspan_path() + " status --follow --every 0.05 runs/one"});
  EXPECT_EQ(result.status, 0) << result.err;
  const std::string& out = result.out;
  EXPECT_EQ(testing_support::count_lines(out), 3) << out;
  EXPECT_TRUE(out.starts_with("runs/one: pending, job 12 PENDING, step 0, Priority\n")) << out;
  EXPECT_NE(out.find("runs/one: running, job 12 RUNNING, step 0\n"), std::string::npos) << out;
  EXPECT_TRUE(out.ends_with("runs/one: done, job 12, step 0\n")) << out;
}

/// Wall seconds of the fastest of several calls.
double seconds_of(const std::vector<std::string>& words) {
  double best = 1e9;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_EQ(run_process(words).status, 0);
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

TEST_F(StatusCommand, AHundredLongRunsAreSeenAtOnce) {
  // Twice: runs of a few steps, then the same with 4 MB of metrics each.
  std::string lines;
  for (int step = 1; step <= 50000; ++step) lines += metrics_line(step);
  for (const char* kind : {"short", "long"}) {
    for (int i = 0; i < 100; ++i) {
      const std::string run = fmt::format("{}/runs/r{}", kind, i);
      fs::create_directories(run + "/checkpoints/step-0000000003");
      append_event(run, {.event = "ended", .status = 75});
      std::ofstream(run + "/config.ini") << "[train]\nsteps = 3000\n";
      if (std::string(kind) == "short" || i > 0)
        std::ofstream(run + "/metrics.jsonl")
            << (std::string(kind) == "short" ? metrics_line(3) : "");
    }
    if (std::string(kind) == "long") {
      std::ofstream("long/metrics.jsonl") << lines;
      for (int i = 0; i < 100; ++i) {
        const std::string file = fmt::format("long/runs/r{}/metrics.jsonl", i);
        fs::remove(file);
        fs::create_hard_link("long/metrics.jsonl", file);
      }
    }
  }
  fs::current_path("short");
  const double few = seconds_of({longspan_path(), "status"});
  fs::current_path("../long");
  const double many = seconds_of({longspan_path(), "status"});
  fs::current_path("..");
  std::printf("100 runs: %.3f s with one line of metrics each, %.3f s with 50000\n", few, many);
  RecordProperty("seconds", std::to_string(many));
  // All of the files would be 400 MB.
  EXPECT_LT(many, 4 * few + 0.5);
}

}  // namespace
}  // namespace longspan::launcher
