/// The run directory: one run at a time, and a config.ini that is always whole.
#include "launcher/run_directory.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <thread>

#include "launcher/options.hpp"
#include "parallel/error.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string error_of(const std::string& path, const io::Attempt& attempt = this_attempt()) {
  try {
    const RunDirectory directory(path, attempt, 0ms);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

class RunDirectoryTest : public testing::Test {
 protected:
  testing_support::TemporaryDirectory folder_;
  std::string path_ = folder_.file("deep/run");
};

TEST_F(RunDirectoryTest, ASecondHolderIsRefusedByName) {
  std::optional<RunDirectory> first(std::in_place, path_);
  const std::string error = error_of(path_);
  EXPECT_NE(error.find(path_), std::string::npos) << error;
  EXPECT_NE(error.find("process " + std::to_string(getpid()) + " on "), std::string::npos) << error;
  EXPECT_EQ(error_of(folder_.file("deep/other")), "");
  first.reset();
  EXPECT_EQ(error_of(path_), "");
}

io::Attempt restart(int count, const std::string& job = "7 of alps") {
  return {.job = job, .restart = count, .process = "process " + std::to_string(count) + " on n1"};
}

TEST_F(RunDirectoryTest, OnlyALaterRestartOfTheSameJobReplacesAHolderThatDoesNotGo) {
  // The holder is cut off, or dead and its lock kept by the file system: it never lets go.
  const RunDirectory cut(path_, restart(1));
  for (const io::Attempt& other :
       {restart(1), restart(0), restart(5, "8 of alps"), restart(5, ""), io::Attempt{}}) {
    const std::string error = error_of(path_, other);
    EXPECT_NE(error.find("process 1 on n1 (restart 1 of Slurm job 7 of alps)"), std::string::npos)
        << error;
  }
  std::optional<RunDirectory> next(std::in_place, path_, restart(2), 0ms);
  // It is held now against everybody else, the replaced one included, and against itself.
  for (const io::Attempt& other : {restart(1), restart(2), restart(5, "8 of alps"), io::Attempt{}})
    EXPECT_NE(error_of(path_, other).find("process 2 on n1"), std::string::npos);
  // Free again when it goes, although the first one still holds its own.
  next.reset();
  EXPECT_EQ(error_of(path_, io::Attempt{}), "");
  int files = 0;
  for (const auto& entry : fs::directory_iterator(path_)) files += entry.is_regular_file();
  EXPECT_EQ(files, 1);  // .lock
}

TEST_F(RunDirectoryTest, WhoWaitedForTheReplacedLockDoesNotGetInByIt) {
  std::optional<RunDirectory> cut(std::in_place, path_, restart(0));
  std::string error = "not tried";
  std::thread waiting([&] {
    try {
      const RunDirectory other(path_, restart(0, "8 of alps"), 1s);
      error = "let in";
    } catch (const Error& e) {
      error = e.what();
    }
  });
  std::this_thread::sleep_for(200ms);
  const RunDirectory next(path_, restart(1), 0ms);
  cut.reset();
  waiting.join();
  EXPECT_NE(error.find("process 1 on n1"), std::string::npos) << error;
}

TEST_F(RunDirectoryTest, AHolderWhoseLockIsLostIsFencedFromItsCheckpoints) {
  const RunDirectory first(path_, restart(0));
  const io::Fence fence(path_ + "/checkpoints", restart(0));
  fs::remove(path_ + "/.lock");  // a server that has forgotten the lock
  const RunDirectory second(path_, restart(0, "8 of alps"), 0ms);
  const io::Fence after(path_ + "/checkpoints", restart(0, "8 of alps"));
  EXPECT_TRUE(fence.lost());
  EXPECT_FALSE(after.lost());
}

TEST_F(RunDirectoryTest, ThisAttemptIsWhatSlurmAndLaunchSay) {
  const char* names[] = {"SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME",
                         "LONGSPAN_LAUNCH"};
  for (const char* name : names) ::unsetenv(name);
  EXPECT_EQ(this_attempt().job + this_attempt().launch, "");
  ::setenv("SLURM_JOB_ID", "12", 1), ::setenv("SLURM_CLUSTER_NAME", "alps", 1);
  EXPECT_EQ(this_attempt().job, "12 of alps");
  EXPECT_EQ(this_attempt().restart, 0);
  ::setenv("SLURM_RESTART_COUNT", "3", 1), ::setenv("LONGSPAN_LAUNCH", "n1:77:2", 1);
  EXPECT_EQ(this_attempt().restart, 3);
  EXPECT_EQ(this_attempt().launch, "n1:77");
  EXPECT_EQ(this_attempt().launch_restart, 2);
  for (const char* name : names) ::unsetenv(name);
}

TEST_F(RunDirectoryTest, ARunThatIsJustEndingIsWaitedFor) {
  std::optional<RunDirectory> first(std::in_place, path_);
  std::thread ending([&] {
    std::this_thread::sleep_for(100ms);
    first.reset();
  });
  EXPECT_NO_THROW(RunDirectory(path_, this_attempt(), 10s));
  ending.join();
}

TEST_F(RunDirectoryTest, OnlyAFolderThatItMadeAndNobodyFilledGoesWithIt) {
  { const RunDirectory refused(path_); }
  EXPECT_FALSE(fs::exists(path_));
  {
    const RunDirectory refused(path_);
    fs::create_directory(path_ + "/watch");
    std::ofstream(path_ + "/watch/rank-00000").put('x');
  }
  EXPECT_FALSE(fs::exists(path_));

  fs::create_directories(path_);
  { const RunDirectory theirs(path_); }
  EXPECT_TRUE(fs::exists(path_ + "/.lock"));
  fs::remove_all(path_);
  {
    const RunDirectory begun(path_);
    std::ofstream(path_ + "/log.txt").put('x');
  }
  EXPECT_TRUE(fs::exists(path_ + "/log.txt"));
  fs::remove_all(path_);
  std::optional<RunDirectory> cut(std::in_place, path_, restart(0));
  const RunDirectory next(path_, restart(1), 0ms);
  cut.reset();
  EXPECT_TRUE(fs::exists(path_ + "/.lock")) << "its successor's";
}

TEST_F(RunDirectoryTest, TheConfigurationReadsBackAndSurvivesAFailedWrite) {
  const RunDirectory directory(path_);
  RunConfig config;
  config.model.width = 96;
  directory.write_config(config, "a comment");
  const std::string text = read(path_ + "/config.ini");
  EXPECT_EQ(text.rfind("# a comment\n", 0), 0u);
  EXPECT_EQ(parse_ini(text).model.width, 96);
  // Something that cannot be written stands where the new file is made.
  fs::create_directory(path_ + "/config.ini.new");
  fs::create_directory(path_ + "/config.ini.new/full");
  config.model.width = 128;
  EXPECT_THROW(directory.write_config(config, "another"), Error);
  EXPECT_EQ(read(path_ + "/config.ini"), text);
}

TEST_F(RunDirectoryTest, WhatCannotBeMadeNamesThePathAndTheWayOut) {
  const std::string file = folder_.file("file");
  std::ofstream(file).put('x');
  for (const std::string& path : {file, file + "/below", std::string("/proc/nothing")}) {
    const std::string error = error_of(path);
    EXPECT_NE(error.find(path), std::string::npos) << error;
    EXPECT_NE(error.find("set run.directory to a place you may write to"), std::string::npos)
        << error;
  }
}

}  // namespace
}  // namespace longspan::launcher
