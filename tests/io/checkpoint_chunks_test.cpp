/// What a rank that wants part of a large block reads, and that nothing damaged in it passes: the
/// table of chunks, and checkpoints from before there was one.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "io/checkpoint_index.hpp"
#include "io/checkpoint_reader.hpp"
#include "io/checksum.hpp"
#include "io/file.hpp"
#include "tests/io/checkpoint_files.hpp"
#include "tests/support/temporary_directory.hpp"

namespace longspan::io {
namespace {

using namespace testing;

constexpr const char* kName = "model/mlp.up.weight";
constexpr std::int64_t kRows = 3000, kColumns = 700, kRowBytes = kColumns * 4;  // 8.4 MB
constexpr const char* kShard = "shard-00000-of-00001.h5";

class Chunks : public ::testing::Test {
 protected:
  Chunks() : tensor_(kName, DType::kF32, {kRows, kColumns}, 1) {
    path_ = write_checkpoint(own_.path(), {tensor_.array}, test_facts(1), Communicator::self());
    block_ = CheckpointReader(path_).tensors().at(0).blocks.at(0);
  }
  /// Rows [begin, end), columns [left, right) as they are read; bytes read in `bytes_read_`.
  std::vector<char> read(std::int64_t begin, std::int64_t end, std::int64_t left = 0,
                         std::int64_t right = kColumns) {
    CheckpointReader reader(path_);
    std::vector<char> found(static_cast<std::size_t>((end - begin) * (right - left) * 4));
    ShardedArray wanted = tensor_.array;
    wanted.offset = {begin, left}, wanted.shape = {end - begin, right - left};
    wanted.data = found.data();
    reader.read(wanted);
    bytes_read_ = reader.bytes_read();
    return found;
  }
  std::vector<char> expected(std::int64_t begin, std::int64_t end, std::int64_t left = 0,
                             std::int64_t right = kColumns) const {
    return block_of(tensor_.global, tensor_.global_shape, {begin, left},
                    {end - begin, right - left}, 4);
  }
  /// The index as programs wrote it before there was a table of chunks.
  void make_old() {
    CheckpointIndex index = read_index(path_);
    index.chunk_bytes = 0;
    for (auto& tensor : index.tensors)
      for (auto& block : tensor.blocks) block.chunk_xxh3.clear();
    std::filesystem::remove(path_ + "/index.h5");
    write_index(path_ + "/index.h5", index);
  }
  void flip(std::int64_t byte_of_block) {
    flip_byte(path_ + "/" + kShard, block_.file_offset + static_cast<std::uint64_t>(byte_of_block));
  }

  testing_support::TemporaryDirectory own_;
  TestTensor tensor_;
  std::string path_;
  TensorEntry::Block block_;
  std::int64_t bytes_read_ = 0;
};

TEST_F(Chunks, TheTableHoldsTheHashOfEveryChunk) {
  const std::int64_t bytes = kRows * kRowBytes;
  ASSERT_EQ(block_.chunk_xxh3.size(), static_cast<std::size_t>(bytes / kChunkBytes + 1));
  for (std::size_t i = 0; i < block_.chunk_xxh3.size(); ++i) {
    const auto begin = static_cast<std::int64_t>(i) * kChunkBytes;
    EXPECT_EQ(block_.chunk_xxh3[i],
              checksum_of(tensor_.global.data() + begin,
                          static_cast<std::size_t>(std::min(kChunkBytes, bytes - begin))));
  }
  EXPECT_EQ(block_.xxh3, checksum_of(tensor_.global.data(), tensor_.global.size()));
}

TEST_F(Chunks, ARankReadsLittleMoreThanItWants) {
  EXPECT_EQ(read(0, kRows), tensor_.global);
  EXPECT_EQ(bytes_read_, kRows * kRowBytes);
  for (const std::int64_t parts : {2, 3, 4, 8}) {
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::int64_t begin = part_begin(kRows, static_cast<int>(part), static_cast<int>(parts)),
                         end =
                             part_begin(kRows, static_cast<int>(part) + 1, static_cast<int>(parts));
      EXPECT_EQ(read(begin, end), expected(begin, end));
      EXPECT_GE(bytes_read_, (end - begin) * kRowBytes);
      EXPECT_LE(bytes_read_, (end - begin) * kRowBytes + 2 * kChunkBytes);
    }
  }
  // A piece of every row needs the rows, but no others.
  EXPECT_EQ(read(500, 1000, 100, 200), expected(500, 1000, 100, 200));
  EXPECT_LE(bytes_read_, 500 * kRowBytes + 2 * kChunkBytes);
}

TEST_F(Chunks, ALongRowsPieceDoesNotNeedTheRow) {
  // Rows of 4 MB, of which a rank wants an eighth each.
  TestTensor wide("model/wide", DType::kF32, {3, 1 << 20}, 2);
  const std::string path =
      write_checkpoint(own_.path(), {wide.array}, test_facts(2), Communicator::self());
  CheckpointReader reader(path);
  const std::int64_t eighth = (1 << 20) / 8;
  std::vector<char> found(static_cast<std::size_t>(3 * eighth * 4));
  ShardedArray wanted = wide.array;
  wanted.offset = {0, 3 * eighth + 5}, wanted.shape = {3, eighth};
  wanted.data = found.data();
  reader.read(wanted);
  EXPECT_EQ(found, block_of(wide.global, wide.global_shape, wanted.offset, wanted.shape, 4));
  EXPECT_LE(reader.bytes_read(), 3 * (eighth * 4 + 2 * kChunkBytes));
}

TEST_F(Chunks, ADamagedChunkIsFoundByWhoeverReadsIt) {
  const std::int64_t row = 1234;
  flip(row * kRowBytes + 17);
  // A hundredth of the block, around the damage.
  const std::string text = error_of([&] { read(row, row + 30); }, ExitStatus::kDamaged);
  EXPECT_TRUE(
      contains(text, std::string(kShard) + ": tensor '" + kName + "' is damaged (in bytes "))
      << text;
  const auto chunk = static_cast<std::size_t>((row * kRowBytes + 17) / kChunkBytes);
  EXPECT_TRUE(contains(text, fmt::format("{:016x} was written", block_.chunk_xxh3[chunk]))) << text;
  EXPECT_EQ(read(0, 1000), expected(0, 1000));  // the others are still good
  const auto problems = CheckpointReader(path_).verify();
  ASSERT_EQ(problems.size(), 1U);
  EXPECT_EQ(problems[0].shard, kShard);
  EXPECT_EQ(problems[0].tensor, kName);
}

TEST_F(Chunks, ManyTensorsAtOnceAndEachIsNamedWhenDamaged) {
  std::vector<TestTensor> tensors;
  std::vector<ShardedArray> arrays;
  for (int i = 0; i < 12; ++i)  // small ones between large ones, some across pieces
    tensors.emplace_back(fmt::format("model/tensor.{}", i), i % 2 == 0 ? DType::kF32 : DType::kU8,
                         Shape{i % 3 == 0 ? 500'003 : 301 + i}, i);
  for (const auto& tensor : tensors) arrays.push_back(tensor.array);
  const std::string path =
      write_checkpoint(own_.path(), arrays, test_facts(5), Communicator::self());
  std::vector<std::vector<char>> found;
  for (const auto& tensor : tensors) found.emplace_back(tensor.global.size());
  for (std::size_t i = 0; i < arrays.size(); ++i) arrays[i].data = found[i].data();
  {
    CheckpointReader reader(path);
    std::reverse(arrays.begin(), arrays.end());  // not the order of the file
    reader.read(arrays);
    std::int64_t bytes = 0;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      EXPECT_EQ(found[i], tensors[i].global) << i;
      bytes += tensors[i].array.bytes();
    }
    EXPECT_EQ(reader.bytes_read(), bytes);
  }
  const std::string shard = path + "/" + kShard;
  const std::vector<TensorEntry> entries = CheckpointReader(path).tensors();
  for (const TensorEntry& entry : entries) {
    const auto at = entry.blocks[0].file_offset + element_count(entry.global_shape) / 2;
    flip_byte(shard, at);
    const std::string text =
        error_of([&] { CheckpointReader(path).read(arrays); }, ExitStatus::kDamaged);
    EXPECT_TRUE(contains(text, std::string(kShard) + ": tensor '" + entry.name + "' is damaged"))
        << text;
    flip_byte(shard, at);
  }
  CheckpointReader reader(path);
  reader.read(arrays);
  // Between two reads, so that its size was right.
  const auto& last = *std::max_element(entries.begin(), entries.end(),
                                       [](const TensorEntry& a, const TensorEntry& b) {
                                         return a.blocks[0].file_offset < b.blocks[0].file_offset;
                                       });
  std::filesystem::resize_file(shard, last.blocks[0].file_offset + 1);
  const std::string text = error_of([&] { reader.read(arrays); }, ExitStatus::kDamaged);
  EXPECT_TRUE(contains(text, std::string(kShard) + ": ends at byte")) << text;
  EXPECT_TRUE(contains(text, "in tensor '" + last.name + "'")) << text;
}

TEST_F(Chunks, EveryFlippedBitIsFoundByEveryReaderOfItsBytes) {
  for (std::int64_t at = 3; at < kRows * kRowBytes; at += 397'311) {
    flip(at);
    const std::int64_t row = at / kRowBytes;
    error_of([&] { read(row, row + 1); }, ExitStatus::kDamaged);
    error_of([&] { read(row, row + 1, at % kRowBytes / 4, at % kRowBytes / 4 + 1); },
             ExitStatus::kDamaged);
    flip(at);
  }
  EXPECT_EQ(read(0, kRows), tensor_.global);
}

TEST_F(Chunks, WithoutATableWholeBlocksAreReadAndChecked) {
  make_old();
  EXPECT_EQ(CheckpointReader(path_).tensors().at(0).blocks.at(0).chunk_xxh3.size(), 0U);
  EXPECT_EQ(read(700, 720, 10, 20), expected(700, 720, 10, 20));
  EXPECT_EQ(bytes_read_, kRows * kRowBytes);
  EXPECT_TRUE(CheckpointReader(path_).verify().empty());
  flip(5);
  const std::string text = error_of([&] { read(700, 720); }, ExitStatus::kDamaged);
  EXPECT_TRUE(contains(text, fmt::format("{:016x} was written", block_.xxh3))) << text;
  EXPECT_EQ(CheckpointReader(path_).verify().size(), 1U);
}

TEST_F(Chunks, ADamagedTableIsRefused) {
  const std::string index = path_ + "/index.h5";
  std::ifstream file(index, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const std::string hash(reinterpret_cast<const char*>(&block_.chunk_xxh3[7]), 8);
  const auto at = bytes.find(hash);
  ASSERT_NE(at, std::string::npos);
  flip_byte(index, at + 3);
  EXPECT_TRUE(contains(error_of([&] { CheckpointReader reader(path_); }, ExitStatus::kDamaged),
                       "the table of chunks is damaged"));
}

TEST(ChunkedChecksum, HoweverTheBytesAreCut) {
  const auto bytes = values_of(DType::kU8, 10'000, 3);
  for (const std::int64_t cut : {1, 7, 999, 1000, 1001, 2000, 10'000}) {
    ChunkedChecksum hash(1000);
    for (std::int64_t at = 0; at < 10'000; at += cut)
      hash.update(bytes.data() + at, std::min<std::int64_t>(cut, 10'000 - at));
    EXPECT_EQ(hash.digest(), checksum_of(bytes.data(), bytes.size()));
    ASSERT_EQ(hash.chunks().size(), 10U) << cut;
    for (std::size_t i = 0; i < 10; ++i)
      EXPECT_EQ(hash.chunks()[i], checksum_of(bytes.data() + i * 1000, 1000)) << cut;
  }
  ChunkedChecksum tail(1000);
  tail.update(bytes.data(), 1500);
  EXPECT_EQ(tail.chunks().size(), 2U);
}

}  // namespace
}  // namespace longspan::io
