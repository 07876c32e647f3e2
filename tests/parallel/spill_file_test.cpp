// timeout: 60
#include "parallel/spill_file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "parallel/error.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

using testing_support::TemporaryDirectory;

/// Buffers with numbers that name their group, their place in it and their index.
SpillFile::Group group_of(int number,
                          const std::vector<std::pair<std::int64_t, std::int64_t>>& shapes) {
  SpillFile::Group group;
  for (const auto& [rows, cols] : shapes) {
    Buffer<float> buffer = rows == 0 ? Buffer<float>() : Buffer<float>(cpu_device(), rows, cols);
    for (std::int64_t i = 0; i < buffer.size(); ++i)
      buffer[i] = static_cast<float>(1000 * number + 100 * static_cast<int>(group.size())) +
                  static_cast<float>(i) / 1024;
    group.push_back(std::move(buffer));
  }
  return group;
}

void expect_equal(const SpillFile::Group& left, const SpillFile::Group& right) {
  ASSERT_EQ(left.size(), right.size());
  for (std::size_t b = 0; b < left.size(); ++b) {
    ASSERT_EQ(left[b].rows(), right[b].rows());
    ASSERT_EQ(left[b].cols(), right[b].cols());
    for (std::int64_t i = 0; i < left[b].size(); ++i) ASSERT_EQ(left[b][i], right[b][i]);
  }
}

/// The file's descriptor, found as the system lists it: the file has no name.
std::string file_of(const std::string& directory) {
  const auto real = std::filesystem::canonical(directory).string();
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const auto target = std::filesystem::read_symlink(entry.path(), gone).string();
    if (target.find(real) == 0 && target.find("longspan-offload") != std::string::npos)
      return entry.path().string();
  }
  return "";
}

const std::vector<std::pair<std::int64_t, std::int64_t>> kShapes = {{30, 70}, {0, 0}, {5, 9000}};

TEST(SpillFile, GivesBackInReverseWhatWentOut) {
  const TemporaryDirectory folder;
  SpillFile file(folder.path(), 1 << 20);
  for (int pass = 0; pass < 3; ++pass) {
    for (int g = 0; g < 6; ++g) file.push(group_of(10 * pass + g, kShapes));
    EXPECT_EQ(file.groups(), 6);
    for (int g = 6; g-- > 0;) {
      const auto group = file.pop();
      file.prefetch();  // the next one, while this one is looked at
      file.prefetch();  // and no second time
      expect_equal(group, group_of(10 * pass + g, kShapes));
    }
    EXPECT_EQ(file.groups(), 0);
  }
  // Every pass takes the same place in the file.
  const std::int64_t group_bytes = 4 * (30 * 70 + 5 * 9000);
  EXPECT_EQ(file.bytes_written(), 18 * group_bytes);
  struct stat status = {};
  ASSERT_EQ(stat(file_of(folder.path()).c_str(), &status), 0);
  EXPECT_LE(status.st_size, std::max<std::int64_t>(1 << 20, 6 * group_bytes));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path())) << "the file has a name";
}

TEST(SpillFile, HoldsNoMemoryOfWhatIsOut) {
  const TemporaryDirectory folder;
  SpillFile file(folder.path(), 0);
  const std::int64_t before = cpu_device().bytes_in_use(), bytes = 4 * 1000 * 1000;
  cpu_device().reset_peak();
  for (int g = 0; g < 5; ++g) file.push(group_of(g, {{1000, 1000}}));
  // One on its way and one being made, never a third.
  EXPECT_LE(cpu_device().peak_bytes() - before, 2 * bytes);
  for (int g = 5; g-- > 0;) {
    const auto group = file.pop();
    EXPECT_LE(cpu_device().bytes_in_use() - before, bytes);
    expect_equal(group, group_of(g, {{1000, 1000}}));
  }
  EXPECT_EQ(cpu_device().bytes_in_use(), before);
}

TEST(SpillFile, StartsAfreshAfterAPassThatEndedEarly) {
  const TemporaryDirectory folder;
  SpillFile file(folder.path(), 0);
  const std::int64_t before = cpu_device().bytes_in_use();
  for (int g = 0; g < 3; ++g) file.push(group_of(g, kShapes));
  file.prefetch();
  file.clear();
  EXPECT_EQ(file.groups(), 0);
  EXPECT_EQ(cpu_device().bytes_in_use(), before);
  file.push(group_of(7, kShapes));
  expect_equal(file.pop(), group_of(7, kShapes));
}

template <class Work>
std::string message_of(const Work& work) {
  try {
    work();
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), ExitStatus::kFailed);
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    return e.what();
  }
  return "no error";
}

TEST(SpillFile, SaysWhereItCannotWrite) {
  const TemporaryDirectory folder;
  const std::string none = folder.file("none");
  const std::string text = message_of([&] { SpillFile(none, 0); });
  EXPECT_NE(text.find(none + ": No such file or directory: set memory.offload-directory"),
            std::string::npos)
      << text;
}

TEST(SpillFile, FindsADiskTooSmallBeforeTheWorkBegins) {
  const TemporaryDirectory folder;
  const std::string text = message_of([&] { SpillFile(folder.path(), std::int64_t{1} << 60); });
  EXPECT_NE(text.find("no room for 1152921504606846976 bytes in " + folder.path()),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("are free): set memory.offload-directory"), std::string::npos) << text;
  // The limit of the shell, which else ends the process.
  rlimit before = {};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small = {16384, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string limited = message_of([&] { SpillFile(folder.path(), 100000); });
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_NE(limited.find("no room for 100000 bytes in " + folder.path() + " (File too large; "),
            std::string::npos)
      << limited;
}

TEST(SpillFile, AFullDiskIsOneErrorAndNoHang) {
  const TemporaryDirectory folder;
  SpillFile file(folder.path(), 0);
  // A file may not grow beyond 16 KiB: write() then fails as on a full disk.
  rlimit before = {};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small = {16384, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string text = message_of([&] {
    for (int g = 0; g < 3; ++g) file.push(group_of(g, kShapes));
  });
  const std::string again = message_of([&] { file.pop(); });
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_NE(text.find("no room for 180000 bytes in " + folder.path()), std::string::npos) << text;
  EXPECT_EQ(again, text) << "the failure is not forgotten";
  file.clear();
  file.push(group_of(1, kShapes));
  expect_equal(file.pop(), group_of(1, kShapes));
}

TEST(SpillFile, AFileCutShortIsOneErrorAndNoHang) {
  const TemporaryDirectory folder;
  SpillFile file(folder.path(), 0);
  file.push(group_of(1, kShapes));
  file.push(group_of(2, kShapes));
  expect_equal(file.pop(), group_of(2, kShapes));
  ASSERT_EQ(truncate(file_of(folder.path()).c_str(), 1000), 0);
  const std::string text = message_of([&] { file.pop(); });
  EXPECT_NE(
      text.find("reading of 8400 bytes from " + folder.path() + " failed: the file is shorter"),
      std::string::npos)
      << text;
}

}  // namespace
}  // namespace longspan
