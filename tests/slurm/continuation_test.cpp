/// Whether a run goes on after a job, case by case; and the times that Slurm writes.
#include "slurm/continuation.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "slurm/remaining_time.hpp"
#include "slurm/sbatch.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

using slurm::JobEnd;
using What = slurm::Verdict::What;

struct Case {
  const char* name;
  JobEnd end;
  What what;
  const char* says;
};

class Judge : public testing::TestWithParam<Case> {};

TEST_P(Judge, Case) {
  slurm::SlurmConfig config;
  config.max_restarts = 3;
  const auto verdict = slurm::judge(GetParam().end, config);
  EXPECT_EQ(verdict.what, GetParam().what) << verdict.why;
  EXPECT_NE(verdict.why.find(GetParam().says), std::string::npos) << verdict.why;
}
INSTANTIATE_TEST_SUITE_P(
    All, Judge,
    testing::Values(
        Case{"done", {.status = 0, .step = 9}, What::kDone, "done"},
        Case{"usage", {.status = 2, .step = 9}, What::kStop, "configuration"},
        Case{"damaged", {.status = 3, .step = 9}, What::kStop, "damaged"},
        Case{"saved", {.status = 75, .step = 9}, What::kGoOn, "step 9"},
        Case{"saved_first_save", {.status = 75, .step = 9, .started = 9}, What::kGoOn, "step 9"},
        Case{"progress",
             {.status = 75, .step = 9, .started = 8, .previous_end = 8, .restarts = 1},
             What::kGoOn,
             "step 9"},
        Case{"same_step_twice",
             {.status = 75, .step = 9, .started = 9, .previous_end = 9, .restarts = 1},
             What::kStop,
             "two jobs in a row ended at step 9: no progress"},
        Case{"never_a_checkpoint",
             {.status = 75, .step = 0, .previous_end = 0, .restarts = 1},
             What::kStop,
             "before its first checkpoint"},
        Case{"warned_before_it_listened", {.status = 128 + 10}, What::kGoOn, "saved"},
        Case{
            "crash_with_progress", {.status = 1, .step = 9, .started = 5}, What::kGoOn, "status 1"},
        Case{"killed_with_progress", {.status = 137, .step = 9, .started = 5}, What::kGoOn, "137"},
        Case{"crash_without_progress",
             {.status = 139, .step = 9, .started = 9},
             What::kStop,
             "no newer checkpoint"},
        Case{"cap",
             {.status = 75, .step = 9, .previous_end = 8, .restarts = 3},
             What::kStop,
             "slurm.max-restarts"},
        Case{"stop_file",
             {.status = 75, .step = 9, .stop_requested = true},
             What::kStop,
             "asked to stop"},
        Case{"scancel", {.status = 75, .step = 9, .cancelled = true}, What::kStop, "cancelled"}),
    [](const auto& p) { return p.param.name; });

TEST(Judge, WithoutContinueItIsLeftToTheUser) {
  slurm::SlurmConfig config;
  config.continuation = slurm::Continue::kNone;
  EXPECT_EQ(slurm::judge({.status = 75, .step = 9}, config).what, What::kStop);
}

TEST(SlurmTime, AllItsForms) {
  EXPECT_EQ(slurm::parse_slurm_time("59"), 59);
  EXPECT_EQ(slurm::parse_slurm_time("59", true), 3540);
  EXPECT_EQ(slurm::parse_slurm_time("4:59"), 299);
  EXPECT_EQ(slurm::parse_slurm_time("1:02:03"), 3723);
  EXPECT_EQ(slurm::parse_slurm_time("2-03"), 183600);
  EXPECT_EQ(slurm::parse_slurm_time("2-03:04"), 183840);
  EXPECT_EQ(slurm::parse_slurm_time("2-03:04:05"), 183845);
  for (const char* text : {"", "UNLIMITED", "INVALID", "NOT_SET", "1:2:3:4", "-1", "1-", "1:", "x"})
    EXPECT_FALSE(slurm::parse_slurm_time(text)) << text;
}

/// Commands of Slurm that say what a test wants.
class FakeSlurm : public testing::Test {
 protected:
  void SetUp() override {
    path_ = std::getenv("PATH");
    ::setenv("PATH", (folder_.path() + ":" + path_).c_str(), 1);
  }
  void TearDown() override { ::setenv("PATH", path_.c_str(), 1); }
  void command(const std::string& name, const std::string& body) {
    std::ofstream(folder_.file(name + ".new")) << "#!/bin/sh\n" << body << "\n";
    std::filesystem::permissions(folder_.file(name + ".new"), std::filesystem::perms::owner_all);
    std::filesystem::rename(folder_.file(name + ".new"), folder_.file(name));
  }
  testing_support::TemporaryDirectory folder_;
  std::string path_;
};

TEST_F(FakeSlurm, JobEndIsAskedForAgain) {
  using Clock = std::chrono::system_clock;
  const auto left = [](const slurm::JobEndWatch& watch) {
    return watch.end() ? std::chrono::duration<double>(*watch.end() - Clock::now()).count() : -1;
  };
  const auto becomes = [&](const slurm::JobEndWatch& watch, double seconds) {
    for (int i = 0; i < 100; ++i) {
      if (left(watch) > seconds - 15 && left(watch) <= seconds) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    return false;
  };
  command("squeue", "[ \"$3\" = 7_2 ] && echo 10:00");
  const slurm::JobEndWatch watch("7_2", std::chrono::seconds(1));
  EXPECT_TRUE(becomes(watch, 600)) << left(watch);
  command("squeue", "echo 1:00:00");  // somebody has given it more time
  EXPECT_TRUE(becomes(watch, 3600)) << left(watch);
  command("squeue", "exit 1");  // no answer is no news
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  EXPECT_TRUE(becomes(watch, 3600)) << left(watch);
}

TEST_F(FakeSlurm, SubmissionGivesTheScriptAndReadsTheId) {
  command("sbatch", "cat >" + folder_.file("got") + "; env >" + folder_.file("environment") +
                        "; echo \"12;cluster\"");
  ::setenv("SLURM_NTASKS", "4", 1);
  ::setenv("SLURM_CONF", "/etc/slurm.conf", 1);
  const auto submission = slurm::submit_script("#!/bin/bash\n# much " + std::string(200000, 'x'));
  ::unsetenv("SLURM_NTASKS");
  ::unsetenv("SLURM_CONF");
  EXPECT_EQ(submission.job, "12") << submission.error;
  EXPECT_EQ(std::filesystem::file_size(folder_.file("got")), 200019u);
  std::ifstream file(folder_.file("environment"));
  const std::string environment{std::istreambuf_iterator<char>(file), {}};
  EXPECT_EQ(environment.find("SLURM_NTASKS"), std::string::npos);
  EXPECT_NE(environment.find("SLURM_CONF"), std::string::npos);
}

TEST_F(FakeSlurm, CancelledIsToldFromOutOfTime) {
  struct {
    const char *state, *run_time, *limit;
    bool cancelled;
  } const cases[] = {{"RUNNING", "00:00:02", "00:05:00", false},
                     {"PENDING", "00:00:00", "00:05:00", false},
                     {"COMPLETING", "00:00:02", "00:05:00", true},
                     {"COMPLETING", "00:05:19", "00:05:00", false},
                     {"COMPLETING", "1-00:05:19", "UNLIMITED", true},
                     {"CANCELLED", "00:05:19", "00:05:00", true}};
  for (const auto& c : cases) {
    command("scontrol",
            std::string("cat <<'END'\nJobId=7 JobName=x JobState=CANCELLED\n   JobState=") +
                c.state + " Reason=None\n   RunTime=" + c.run_time + " TimeLimit=" + c.limit +
                " TimeMin=N/A\nEND");
    EXPECT_EQ(slurm::job_facts("7").state, c.state);
    EXPECT_EQ(slurm::job_facts("7").cancelled(), c.cancelled) << c.state << " " << c.run_time;
  }
  command("scontrol", "exit 1");
  EXPECT_EQ(slurm::job_facts("7").state, "");
}

TEST_F(FakeSlurm, ErrorsAreOneLineWithTheRemedy) {
  struct {
    const char *sbatch_says, *remedy;
  } const cases[] = {
      {"sbatch: error: invalid partition specified: nosuch\n"
       "sbatch: error: Batch job submission failed: Invalid partition name specified",
       "slurm.partition"},
      {"sbatch: error: Batch job submission failed: Requested node configuration is not available",
       "slurm.ranks-per-node"},
      {"sbatch: error: Unable to contact slurm controller (connect failure)", "try again later"},
      {"sbatch: error: something new", "--dry-run"},
  };
  for (const auto& c : cases) {
    command("sbatch",
            std::string("cat >/dev/null; cat >&2 <<'END'\n") + c.sbatch_says + "\nEND\nexit 1");
    const auto submission = slurm::submit_script("#!/bin/bash\n");
    EXPECT_EQ(submission.job, "");
    EXPECT_NE(submission.error.find(c.remedy), std::string::npos) << submission.error;
    EXPECT_EQ(submission.error.find('\n'), std::string::npos) << submission.error;
  }
  ::setenv("PATH", folder_.file("nothing").c_str(), 1);
  EXPECT_NE(slurm::submit_script("").error.find("there is no sbatch here"), std::string::npos);
}

}  // namespace
}  // namespace longspan
