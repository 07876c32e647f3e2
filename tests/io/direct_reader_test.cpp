/// Bytes past the page cache: whichever parts of files are wanted, they come whole, in order, and
/// no others; what cannot be read says so and takes nothing else with it.
#include "io/direct_reader.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/io/checkpoint_files.hpp"
#include "tests/support/temporary_directory.hpp"

namespace longspan::io {
namespace {

using namespace testing;

constexpr std::int64_t kPiece = DirectReader::kPiece;
constexpr std::int64_t kCut = DirectReader::kCut;
using Extents = std::vector<DirectReader::Extent>;

std::string message_of(const std::exception_ptr& failure) {
  return error_of([&] { std::rethrow_exception(failure); }, ExitStatus::kDamaged);
}

class DirectReaderTest : public ::testing::TestWithParam<bool> {
 protected:
  /// A file of known bytes, different from those of other files.
  std::string make(const std::string& name, std::int64_t bytes) {
    const auto values = values_of(DType::kU32, bytes / 4 + 1, static_cast<int>(name.size()));
    contents_.emplace_back(values.data(), static_cast<std::size_t>(bytes));
    paths_.push_back(own_.file(name));
    std::ofstream(paths_.back(), std::ios::binary) << contents_.back();
    return paths_.back();
  }
  std::string expected(const DirectReader::Extent& extent) const {
    return contents_[extent.file].substr(static_cast<std::size_t>(extent.begin),
                                         static_cast<std::size_t>(extent.end - extent.begin));
  }
  /// What was read of each extent; "?" for a part that could not be.
  std::vector<std::string> read(DirectReader& reader, const Extents& extents) {
    std::vector<std::string> found(extents.size());
    std::size_t last = 0;
    reader.read(extents, [&](const DirectReader::Part& part) {
      EXPECT_GE(part.extent, last);  // in order
      last = part.extent;
      const std::int64_t bytes = extents[last].end - extents[last].begin;
      EXPECT_TRUE(part.at + part.bytes == bytes || part.bytes % kCut == 0) << part.bytes;
      EXPECT_LE(part.bytes, kPiece);
      EXPECT_EQ(part.data == nullptr, part.failure != nullptr);
      if (part.failure) {
        failures_.push_back(message_of(part.failure));
        found[last] += "?";
        return;
      }
      EXPECT_EQ(part.at, static_cast<std::int64_t>(found[last].size()));
      found[last].append(part.data, static_cast<std::size_t>(part.bytes));
    });
    return found;
  }
  void expect_all(DirectReader& reader, const Extents& extents) {
    const auto found = read(reader, extents);
    for (std::size_t i = 0; i < extents.size(); ++i)
      EXPECT_TRUE(found[i] == expected(extents[i]))
          << i << ": " << extents[i].begin << " to " << extents[i].end << " of file "
          << extents[i].file << ", " << found[i].size() << " bytes came";
    EXPECT_TRUE(failures_.empty()) << failures_.front();
  }

  testing_support::TemporaryDirectory own_;
  std::vector<std::string> paths_, contents_, failures_;
};

TEST_P(DirectReaderTest, EveryPlaceAndLength) {
  const std::int64_t size = 5 * kPiece + 4099;
  make("f", size);
  make("of another", 100'000);
  Extents extents;
  for (const std::int64_t border : {std::int64_t{0}, kPageBytes, kCut, kPiece, 2 * kPiece})
    for (const std::int64_t before : {-1, 0, 1})
      for (const std::int64_t bytes : {std::int64_t{0}, std::int64_t{1}, kPageBytes - 1, kPageBytes,
                                       kCut + 1, kPiece - 1, kPiece, kPiece + 1, 2 * kPiece + 3})
        if (border + before >= 0) extents.push_back({0, border + before, border + before + bytes});
  extents.push_back({1, 0, 100'000});
  extents.push_back({0, size - 1, size});
  extents.push_back({1, 99'999, 100'000});
  extents.push_back({0, 0, size});
  DirectReader reader(paths_, GetParam());
  expect_all(reader, extents);
  for (const auto& extent : extents) expect_all(reader, {extent});
}

TEST_P(DirectReaderTest, FilesOfAFewBytes) {
  Extents extents;
  for (const std::int64_t size : {1, 5, 511, 4095, 4096, 4097}) {
    make(fmt::format("f{}", size), size);
    extents.push_back({paths_.size() - 1, 0, size});
    extents.push_back({paths_.size() - 1, size / 2, size});
  }
  DirectReader reader(paths_, GetParam());
  expect_all(reader, extents);
  reader.read({}, [](const DirectReader::Part&) { FAIL(); });
}

TEST_P(DirectReaderTest, ReadsWhatIsWantedAndLittleMore) {
  make("f", 40'000'000);
  Extents near, far;
  for (std::int64_t i = 0; i < 300; ++i) near.push_back({0, i * 10'001, i * 10'001 + 9000});
  for (std::int64_t i = 0; i < 300; ++i) far.push_back({0, i * 130'000, i * 130'000 + 9000});
  DirectReader reader(paths_, GetParam());
  expect_all(reader, near);
  EXPECT_LE(reader.bytes_requested(), 300 * 10'001 + 2 * kPageBytes);  // at once
  const std::int64_t before = reader.bytes_requested();
  expect_all(reader, far);
  EXPECT_LE(reader.bytes_requested() - before, 300 * (9000 + 2 * kPageBytes));  // not the rest
}

TEST_P(DirectReaderTest, MemoryStaysWithinItsPieces) {
  const std::int64_t size = 10 * kPiece;
  make("f", size);
  DirectReader reader(paths_, GetParam());
  const char *lowest = nullptr, *highest = nullptr;
  const Extents all = {{0, 0, size}};
  reader.read(all, [&](const DirectReader::Part& part) {
    if (lowest == nullptr) lowest = highest = part.data;
    lowest = std::min(lowest, part.data);
    highest = std::max(highest, part.data + part.bytes);
  });
  EXPECT_GT(highest - lowest, kPiece);
  EXPECT_LE(highest - lowest, static_cast<std::int64_t>(kDirectPieces) * kPiece);
}

TEST_P(DirectReaderTest, ATruncatedFileSpoilsOnlyWhatIsGone) {
  const std::string path = make("f", 3 * kPiece);
  make("good", 2 * kPiece + 5);
  std::filesystem::resize_file(path, static_cast<std::uintmax_t>(kPiece + 10'000));
  DirectReader reader(paths_, GetParam());
  const Extents extents = {{0, 0, 5000},
                           {0, kPiece + 100, kPiece + 10'000},
                           {0, kPiece + 10'000, kPiece + 10'001},
                           {0, kPiece + 9000, kPiece + 20'000},
                           {0, 2 * kPiece, 3 * kPiece},
                           {1, 0, 2 * kPiece + 5}};
  const auto found = read(reader, extents);
  for (const std::size_t good : {0, 1, 5}) EXPECT_TRUE(found[good] == expected(extents[good]));
  for (const std::size_t gone : {2, 3, 4}) EXPECT_EQ(found[gone], "?") << gone;
  ASSERT_EQ(failures_.size(), 3U);
  EXPECT_TRUE(contains(failures_[1], fmt::format("{}: ends at byte {}, {} were expected", path,
                                                 kPiece + 10'000, kPiece + 20'000)))
      << failures_[1];
}

TEST_P(DirectReaderTest, AMissingFileIsAPartThatFailed) {
  make("f", 2 * kPiece);
  paths_.push_back(own_.file("missing"));
  contents_.emplace_back();
  DirectReader reader(paths_, GetParam());
  const auto found = read(reader, {{0, 0, 100}, {1, 0, 100}, {0, 0, 2 * kPiece}});
  EXPECT_EQ(found[0] + found[2], contents_[0].substr(0, 100) + contents_[0]);
  ASSERT_EQ(failures_.size(), 1U);
  EXPECT_TRUE(contains(failures_[0], "missing: cannot open")) << failures_[0];
}

TEST_P(DirectReaderTest, WhatTheUserThrowsEndsIt) {
  make("f", 9 * kPiece);
  DirectReader reader(paths_, GetParam());
  const Extents all = {{0, 0, 9 * kPiece}};
  for (const std::int64_t after : {std::int64_t{0}, kPiece, 5 * kPiece}) {
    const std::string text = error_of(
        [&] {
          reader.read(all, [&](const DirectReader::Part& part) {
            if (part.at >= after) fail_damaged("enough");
          });
        },
        ExitStatus::kDamaged);
    EXPECT_EQ(text, "enough");
  }
  EXPECT_LT(reader.bytes_requested(), 3 * 9 * kPiece);
  expect_all(reader, all);
}

INSTANTIATE_TEST_SUITE_P(DirectOrCached, DirectReaderTest, ::testing::Bool(),
                         [](const auto& way) { return way.param ? "direct" : "cached"; });

TEST(DirectReader, FileSystemsThatRefuseAreReadThroughTheCache) {
  const std::string path = "/proc/version";
  std::ifstream file(path);
  const std::string expected{std::istreambuf_iterator<char>(file), {}};
  if (expected.empty() || open_direct(path, RawFile::Mode::kRead))
    GTEST_SKIP() << path << " is not there or does not refuse";
  DirectReader reader({path});
  std::string found;
  const Extents all = {{0, 0, static_cast<std::int64_t>(expected.size())}};
  reader.read(all, [&](const DirectReader::Part& part) {
    ASSERT_FALSE(part.failure);
    found.append(part.data, static_cast<std::size_t>(part.bytes));
  });
  EXPECT_EQ(found, expected);
  EXPECT_FALSE(reader.direct());
}

}  // namespace
}  // namespace longspan::io
