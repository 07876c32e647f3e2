/// Folder walking and gzip: which files are found, in which order, and what their bytes are.
#include "io/input_files.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "io/byte_source.hpp"
#include "parallel/error.hpp"
#include "tests/io/dataset_fixture.hpp"

namespace longspan::io {
namespace {

namespace fs = std::filesystem;
using testing_support::TemporaryDirectory;

std::vector<std::string> names_of(const InputFiles& found) {
  std::vector<std::string> names;
  for (const InputFile& file : found.files) names.push_back(file.name);
  return names;
}

using Names = std::vector<std::string>;

TEST(InputFiles, WalksInSortedOrderAndCountsWhatItLeavesOut) {
  const TemporaryDirectory folder;
  const std::string root = folder.file("root");
  fs::create_directories(root + "/b/deep");
  fs::create_directories(root + "/.git");
  write_file(root + "/z.txt", "z");
  write_file(root + "/a.txt", "aa");
  write_file(root + "/b/deep/m.txt", "mmm");
  write_file(root + "/b/empty.txt", "");
  write_file(root + "/.hidden", "h");
  write_file(root + "/.git/config", "g");
  ::mkfifo((root + "/pipe").c_str(), 0600);
  fs::create_directory_symlink(root, root + "/b/loop");
  fs::create_symlink(root + "/a.txt", root + "/link.txt");
  const InputFiles found = list_input_files({root}, {});
  EXPECT_EQ(names_of(found), (Names{"a.txt", "b/deep/m.txt", "link.txt", "z.txt"}));
  EXPECT_EQ(found.bytes, 2 + 3 + 2 + 1);
  EXPECT_EQ(found.empty, 1);
  EXPECT_EQ(found.hidden, 2);
  EXPECT_EQ(found.special, 1);
  EXPECT_EQ(found.folder_links, 1);
}

TEST(InputFiles, EndingsFilterFoldersButNotNamedFiles) {
  const TemporaryDirectory folder;
  for (const char* name : {"a.hpp", "b.h", "c.txt", "d.h.gz", "eh"})
    write_file(folder.file(name), "x");
  const InputFiles found =
      list_input_files({folder.path()}, {.endings = {".hpp", ".h"}, .exclude = ""});
  EXPECT_EQ(names_of(found), (Names{"a.hpp", "b.h", "d.h.gz"}));
  EXPECT_EQ(found.other_endings, 2);
  EXPECT_EQ(names_of(list_input_files({folder.file("c.txt")}, {.endings = {".h"}, .exclude = ""})),
            Names{"c.txt"});
}

TEST(InputFiles, LeavesOutTheOutputOfThisRun) {
  const TemporaryDirectory folder;
  for (const char* name : {"a.txt", "d.h5", "d.h5.partial"}) write_file(folder.file(name), "x");
  EXPECT_EQ(
      names_of(list_input_files({folder.path()}, {.endings = {}, .exclude = folder.file("d.h5")})),
      Names{"a.txt"});
}

TEST(InputFiles, WhatCannotBeReadIsNamed) {
  const TemporaryDirectory folder;
  write_file(folder.file("a.txt"), "x");
  fs::create_symlink("nowhere", folder.file("dangling"));
  const std::string message =
      error_of([&] { list_input_files({folder.path()}, {}); }, ExitStatus::kFailed);
  EXPECT_TRUE(contains(message, "dangling")) << message;
  EXPECT_TRUE(contains(message, "--skip-unreadable")) << message;
  const InputFiles found =
      list_input_files({folder.path()}, {.endings = {}, .skip_unreadable = true, .exclude = ""});
  EXPECT_EQ(names_of(found), Names{"a.txt"});
  ASSERT_EQ(found.unreadable.size(), 1u);
  EXPECT_TRUE(contains(found.unreadable[0], "dangling"));
  EXPECT_TRUE(
      contains(error_of([&] { list_input_files({folder.file("none")}, {}); }, ExitStatus::kUsage),
               "no such file"));
  ::mkfifo(folder.file("pipe").c_str(), 0600);
  EXPECT_TRUE(contains(
      error_of([&] { list_input_files({folder.file("pipe")}, {}); }, ExitStatus::kUsage), "pipe"));
}

std::string all_of(const std::string& path, std::size_t piece) {
  ByteSource source(path);
  std::string text;
  std::vector<std::uint8_t> buffer(piece);
  while (const std::size_t n = source.read(buffer))
    text.append(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(n));
  EXPECT_EQ(source.file_position(), source.file_bytes());
  return text;
}

TEST(ByteSource, GzipIsRecognisedByItsBytesWhateverTheName) {
  const TemporaryDirectory folder;
  std::string text;
  for (int i = 0; i < 300000; ++i) text += static_cast<char>('a' + i % 1009 % 26);
  write_file(folder.file("plain.gz"), text);  // not gzip, in spite of its name
  write_file(folder.file("packed.txt"), gzip(text));
  write_file(folder.file("members.gz"), gzip(text.substr(0, 1000)) + gzip("") +
                                            gzip(text.substr(1000)) + std::string(512, '\0'));
  for (const char* name : {"plain.gz", "packed.txt", "members.gz"})
    for (std::size_t piece : {std::size_t{7}, std::size_t{4096}, std::size_t{1} << 20})
      EXPECT_EQ(all_of(folder.file(name), piece), text) << name << " in pieces of " << piece;
  EXPECT_FALSE(ByteSource(folder.file("plain.gz")).compressed());
  EXPECT_TRUE(ByteSource(folder.file("packed.txt")).compressed());
}

TEST(ByteSource, DamagedGzipIsFound) {
  const TemporaryDirectory folder;
  const std::string packed = gzip(std::string(100000, 'x') + "tail");
  const std::string path = folder.file("x.gz");
  const auto message_for = [&](const std::string& bytes) {
    write_file(path, bytes);
    return error_of([&] { all_of(path, 1000); }, ExitStatus::kDamaged);
  };
  EXPECT_TRUE(contains(message_for(packed.substr(0, packed.size() - 5)), "cut off"));
  EXPECT_TRUE(contains(message_for(packed.substr(0, packed.size() / 2)), "cut off"));
  std::string flipped = packed;
  flipped[packed.size() - 6] ^= 1;  // of the checksum
  EXPECT_TRUE(contains(message_for(flipped), "damaged gzip"));
  EXPECT_TRUE(contains(message_for(packed + "rubbish"), "not gzip"));
  EXPECT_TRUE(
      contains(error_of([&] { ByteSource(folder.file("none")); }, ExitStatus::kFailed), "none"));
  EXPECT_TRUE(
      contains(error_of([&] { ByteSource(folder.path()); }, ExitStatus::kFailed), "folder"));
}

}  // namespace
}  // namespace longspan::io
