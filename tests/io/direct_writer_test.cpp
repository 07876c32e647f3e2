/// Bytes past the page cache: they arrive whole, wherever they begin and end, and what cannot be
/// written is an error of the next call.
#include "io/direct_writer.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "io/checksum.hpp"
#include "tests/io/checkpoint_files.hpp"
#include "tests/support/temporary_directory.hpp"

namespace longspan::io {
namespace {

using namespace testing;

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class DirectWriterTest : public ::testing::TestWithParam<bool> {};

TEST_P(DirectWriterTest, EveryPlaceAndLength) {
  const testing_support::TemporaryDirectory folder;
  const std::string path = folder.file("f");
  constexpr std::int64_t kPiece = DirectWriter::kPiece;
  struct Case {
    std::int64_t offset, bytes;
  };
  const std::vector<Case> cases = {{0, 100},          {4096, 4096},
                                   {8192, 70'001},    {100'001, 200'000},
                                   {409'600, kPiece}, {9'011'200, 4 * kPiece + 5},
                                   {26'000'003, 1},   {26'001'408, 12'288}};
  std::string expected(26'013'696, '\0');
  std::ofstream(path) << expected;
  DirectWriter writer(path, GetParam());
  for (const auto& c : cases) {
    std::vector<char> bytes = values_of(DType::kU8, c.bytes, static_cast<int>(c.offset % 251));
    std::copy(bytes.begin(), bytes.end(), expected.begin() + c.offset);
    ChunkedChecksum hash(50'000);
    writer.write(bytes.data(), c.bytes, c.offset, &hash);
    EXPECT_EQ(hash.digest(), checksum_of(bytes.data(), bytes.size()));
    EXPECT_EQ(hash.chunks().size(), (bytes.size() + 49'999) / 50'000);
    std::fill(bytes.begin(), bytes.end(), 'x');  // it has its copy
  }
  writer.sync();
  EXPECT_EQ(read(path), expected);
  writer.close();
  EXPECT_EQ(read(path), expected);
  EXPECT_FALSE(writer.direct() && !GetParam());
}

INSTANTIATE_TEST_SUITE_P(DirectOrCached, DirectWriterTest, ::testing::Bool(),
                         [](const auto& way) { return way.param ? "direct" : "cached"; });

TEST(DirectWriter, AFullDiskIsTheErrorOfALaterCall) {
  const testing_support::TemporaryDirectory folder;
  const std::string path = folder.file("f");
  std::ofstream(path) << "";
  const std::vector<char> bytes(9 * DirectWriter::kPiece, 'a');
  const FileSizeLimit limit(2 * DirectWriter::kPiece + 10'000);
  DirectWriter writer(path);
  const std::string text = error_of(
      [&] {
        writer.write(bytes.data(), static_cast<std::int64_t>(bytes.size()), 0);
        writer.sync();
      },
      ExitStatus::kFailed);
  EXPECT_TRUE(contains(text, path + ": cannot write")) << text;
  EXPECT_TRUE(contains(text, "File too large")) << text;
  // It stays so, and nothing waits for ever.
  EXPECT_EQ(error_of([&] { writer.sync(); }, ExitStatus::kFailed), text);
  error_of([&] { writer.write(bytes.data(), DirectWriter::kPiece, 0); }, ExitStatus::kFailed);
}

TEST(DirectWriter, WhatIsUnderWayAtTheEndIsWaitedFor) {
  const testing_support::TemporaryDirectory folder;
  const std::string path = folder.file("f");
  std::ofstream(path) << "";
  const std::vector<char> bytes(3 * DirectWriter::kPiece, 'a');
  for (int i = 0; i < 20; ++i) {  // as when another rank's error ends the save
    DirectWriter writer(path);
    writer.write(bytes.data(), (i % 4) * DirectWriter::kPiece, 0);
  }
  EXPECT_LE(read(path).size(), bytes.size());
}

}  // namespace
}  // namespace longspan::io
