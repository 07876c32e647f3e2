// label: slow
// timeout: 300
/// Disks that are full, read-only or gone while a run saves: one line for each save that failed,
/// training goes on, the next save is tried, and the end says so. The file systems are real ones,
/// in memory, where the test may mount; elsewhere checkpoint_damage_test.cpp limits file sizes.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "io/checkpoint_index.hpp"
#include "io/checkpoint_reader.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing_support::longspan;
using testing_support::ProcessResult;

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

/// A small file system at a path, while it lives.
class Mounted {
 public:
  Mounted(std::string path, const std::string& options, unsigned long flags = 0)
      : path_(std::move(path)) {
    fs::create_directories(path_);
    if (::mount("tmpfs", path_.c_str(), "tmpfs", flags, options.c_str()) != 0) error_ = errno;
  }
  ~Mounted() { unmount(); }
  Mounted(const Mounted&) = delete;
  Mounted& operator=(const Mounted&) = delete;
  /// From now on nothing can be written; waits for a moment when nobody writes.
  void make_read_only() {
    while (error_ == 0 &&
           ::mount(nullptr, path_.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, "") != 0 &&
           errno == EBUSY) {
    }
  }
  /// Why not; empty if it is there.
  std::string problem() const { return error_ == 0 ? "" : std::strerror(error_); }
  void unmount() {
    if (error_ == 0) ::umount2(path_.c_str(), MNT_DETACH);
    error_ = ENOENT;
  }

 private:
  std::string path_;
  int error_ = 0;
};

class SaveFailure : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const auto r =
        longspan({"prepare", "--kind", "text", "--output", data_, LONGSPAN_SOURCE_DIR "/launcher"});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  ProcessResult train(const std::string& run, int steps, int keep) const {
    return longspan(testing_support::launch_tiny(
        2, data_, run,
        "--max-restarts 0 --train.validate-every 0 --checkpoint.every 2 --train.steps " +
            std::to_string(steps) + " --checkpoint.keep " + std::to_string(keep) +
            " --checkpoint.overlap " + GetParam()));
  }
  static int steps_of(const std::string& run) {
    std::ifstream file(run + "/metrics.jsonl");
    int lines = 0;
    for (std::string line; std::getline(file, line);) ++lines;
    return lines;
  }
  /// The checkpoints of a run, all of them good; nothing half-written among them.
  static std::size_t good_checkpoints(const std::string& run) {
    const auto stored = io::list_checkpoints(run + "/checkpoints");
    for (const auto& each : stored)
      EXPECT_TRUE(io::CheckpointReader(each.path).verify().empty()) << each.path;
    return stored.size();
  }
  static int temporary_folders(const std::string& run) {
    int found = 0;
    for (const auto& owner : fs::directory_iterator(run + "/checkpoints")) {
      found += owner.path().filename().string().starts_with(".step-") ? 1 : 0;
      if (!owner.path().filename().string().starts_with(".owner-")) continue;
      for (const auto& entry : fs::directory_iterator(owner.path()))
        found += entry.path().filename().string().starts_with("step-") ? 1 : 0;
    }
    return found;
  }

  testing_support::TemporaryDirectory folder_;
  std::string data_ = folder_.file("d.h5");
};

TEST_P(SaveFailure, AFullDisk) {
  // A checkpoint has 1.6 MB and a save asks for 2.6: two fit, the third does not.
  const std::string place = folder_.file("disk"), run = place + "/run";
  Mounted disk(place, "size=5m");
  if (!disk.problem().empty()) GTEST_SKIP() << "cannot mount here: " << disk.problem();
  const auto r = train(run, 12, 0);
  EXPECT_EQ(r.status, 1) << r.err << r.out;
  EXPECT_EQ(steps_of(run), 12);
  EXPECT_EQ(good_checkpoints(run), 2U);
  EXPECT_EQ(temporary_folders(run), 0);
  for (const int step : {6, 8, 10, 12})
    EXPECT_EQ(count(r.err, fmt::format("warning: step {} was not saved: ", step)), 1) << r.err;
  EXPECT_EQ(count(r.err, "are free: free "), 5) << r.err;  // and in the last line
  EXPECT_EQ(count(r.err, "the last save failed: "), 1) << r.err;
  EXPECT_EQ(testing_support::count_lines(r.err), 5) << r.err;
  // With room again the same command goes on from there.
  fs::remove_all(run + "/checkpoints/step-0000000002");
  const auto rest = train(run, 12, 1);
  EXPECT_EQ(rest.status, 0) << rest.err;
  EXPECT_NE(rest.out.find("after step 4"), std::string::npos) << rest.out;
  EXPECT_EQ(steps_of(run), 12);
}

TEST_P(SaveFailure, WhatADeadRunLeftDoesNotFillTheDisk) {
  const std::string place = folder_.file("disk"), run = place + "/run";
  Mounted disk(place, "size=5m");
  if (!disk.problem().empty()) GTEST_SKIP() << "cannot mount here: " << disk.problem();
  const std::string left = run + "/checkpoints/.step-0000000002.0badcafe.tmp";
  fs::create_directories(left);
  std::ofstream(left + "/shard-00000-of-00002.h5") << std::string(3'000'000, 'x');
  const auto r = train(run, 2, 1);
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.err, "");
  EXPECT_FALSE(fs::exists(left));
}

TEST_P(SaveFailure, AReadOnlyDisk) {
  const std::string run = folder_.file("run");
  Mounted disk(run + "/checkpoints", "size=4m", MS_RDONLY);
  if (!disk.problem().empty()) GTEST_SKIP() << "cannot mount here: " << disk.problem();
  const auto r = train(run, 6, 0);
  EXPECT_EQ(r.status, 1) << r.err << r.out;
  EXPECT_EQ(steps_of(run), 6);
  EXPECT_EQ(count(r.err, "warning: step "), 3) << r.err;
  EXPECT_EQ(count(r.err, "Read-only file system"), 4) << r.err;
  EXPECT_EQ(testing_support::count_lines(r.err), 4) << r.err;
}

TEST_P(SaveFailure, ADiskThatBecomesReadOnly) {
  const std::string run = folder_.file("run");
  Mounted disk(run + "/checkpoints", "size=40m");
  if (!disk.problem().empty()) GTEST_SKIP() << "cannot mount here: " << disk.problem();
  auto job = std::async(std::launch::async, [&] { return train(run, 40, 2); });
  while (!fs::exists(run + "/checkpoints/latest") &&
         job.wait_for(2ms) != std::future_status::ready) {
  }
  disk.make_read_only();
  const auto r = job.get();
  EXPECT_EQ(r.status, 1) << r.err << r.out;
  EXPECT_EQ(steps_of(run), 40);
  EXPECT_GE(count(r.err, "Read-only file system"), 2) << r.err;
  EXPECT_EQ(count(r.err, "warning: step ") + 1, testing_support::count_lines(r.err)) << r.err;
  EXPECT_GE(good_checkpoints(run), 1U);
}

TEST_P(SaveFailure, AFolderThatGoesWhileTheRunIsUnderWay) {
  // Needs no mount: to the run it is the same as a file system that is not there any more.
  const std::string run = folder_.file("run"), away = folder_.file("away");
  auto job = std::async(std::launch::async, [&] { return train(run, 40, 2); });
  while (!fs::exists(run + "/checkpoints/latest") &&
         job.wait_for(2ms) != std::future_status::ready) {
  }
  fs::rename(run, away);
  const auto r = job.get();
  EXPECT_EQ(r.status, 1) << r.err << r.out;
  EXPECT_FALSE(fs::exists(run)) << "another folder was made where the lost one was";
  EXPECT_EQ(steps_of(away), 40);
  EXPECT_GE(count(r.err, run + ": this folder is gone"), 2) << r.err;
  EXPECT_EQ(count(r.err, "warning: step ") + 1, testing_support::count_lines(r.err)) << r.err;
  EXPECT_GE(good_checkpoints(away), 1U);
  fs::rename(away, run);
  const auto rest = train(run, 40, 2);
  EXPECT_EQ(rest.status, 0) << rest.err;
  EXPECT_EQ(rest.err, "");
  EXPECT_EQ(temporary_folders(run), 0);
}

TEST_P(SaveFailure, AFileSystemThatIsUnmounted) {
  const std::string place = folder_.file("disk"), run = place + "/run";
  Mounted disk(place, "size=40m");
  if (!disk.problem().empty()) GTEST_SKIP() << "cannot mount here: " << disk.problem();
  auto job = std::async(std::launch::async, [&] { return train(run, 40, 2); });
  while (!fs::exists(run + "/checkpoints/latest") &&
         job.wait_for(2ms) != std::future_status::ready) {
  }
  disk.unmount();
  const auto r = job.get();
  EXPECT_EQ(r.status, 1) << r.err << r.out;
  EXPECT_TRUE(fs::is_empty(place)) << "the run went on under the mount point";
  EXPECT_GE(count(r.err, run + ": this folder is gone"), 2) << r.err;
  EXPECT_EQ(count(r.err, "warning: step ") + 1, testing_support::count_lines(r.err)) << r.err;
}

INSTANTIATE_TEST_SUITE_P(Overlap, SaveFailure, testing::Values("on", "off"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace longspan
