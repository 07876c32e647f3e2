// ranks: 1 2 3
/// Checkpoints written by several ranks: any layout is read back on any other, every rank hears of
/// every failure.
#include <gtest/gtest.h>

#include "io/checkpoint.hpp"
#include "io/checkpoint_reader.hpp"
#include "io/hdf5.hpp"
#include "tests/io/checkpoint_files.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/temporary_directory.hpp"

namespace longspan::io {
namespace {

using namespace testing;

/// One folder for all ranks, removed by rank 0 when all are done.
class CheckpointRanks : public ::testing::Test {
 protected:
  CheckpointRanks()
      : world_(Communicator::world()),
        own_(std::make_unique<testing_support::TemporaryDirectory>()),
        directory_(world_.broadcast(own_->path(), 0) + "/checkpoints") {}
  ~CheckpointRanks() override { world_.barrier(); }

  std::vector<TestTensor> row_split(int salt = 0) const {
    auto tensors = test_tensors(salt);
    for (auto& tensor : tensors) tensor.take_rows(world_.rank(), world_.size());
    return tensors;
  }

  Communicator world_;
  std::unique_ptr<testing_support::TemporaryDirectory> own_;
  std::string directory_;
};

bool reads_back(CheckpointReader& reader, TestTensor& tensor, const Shape& offset,
                const Shape& shape) {
  tensor.take(offset, shape);
  std::vector<char> found(tensor.local.size() + 1, 'x');
  ShardedArray array = tensor.array;
  array.data = found.data();
  reader.read(array);
  const bool inside = found.back() == 'x';
  found.pop_back();
  return inside && found == tensor.local;
}

TEST_F(CheckpointRanks, AnyLayoutIsReadFromAnyOther) {
  auto tensors = row_split();
  const std::string path = write_checkpoint(directory_, arrays_of(tensors), test_facts(7), world_);
  EXPECT_ALL_RANKS(path == directory_ + "/step-0000000007");
  EXPECT_ALL_RANKS(std::filesystem::read_symlink(directory_ + "/latest") == "step-0000000007");

  CheckpointReader reader(path);
  EXPECT_ALL_RANKS(reader.facts().world_size == world_.size());
  EXPECT_ALL_RANKS(reader.shard_files().size() == static_cast<std::size_t>(world_.size()));
  for (auto& tensor : tensors) {
    const Shape& global = tensor.global_shape;
    const Shape origin(global.size(), 0);
    EXPECT_ALL_RANKS(reads_back(reader, tensor, origin, global));
    // Blocks of the last dim, and an odd block in the middle of every dim.
    Shape offset = origin, shape = global;
    offset.back() = part_begin(global.back(), world_.rank(), world_.size());
    shape.back() = part_begin(global.back(), world_.rank() + 1, world_.size()) - offset.back();
    EXPECT_ALL_RANKS(reads_back(reader, tensor, offset, shape));
    for (std::size_t d = 0; d < global.size(); ++d) {
      offset[d] = global[d] / 3;
      shape[d] = (global[d] + 2) / 3;
    }
    EXPECT_ALL_RANKS(reads_back(reader, tensor, offset, shape));
    EXPECT_ALL_RANKS(reads_back(reader, tensor, origin, Shape(global.size(), 0)));
  }
  EXPECT_ALL_RANKS(reader.verify().empty());
}

TEST_F(CheckpointRanks, ColumnBlocksAreReadAsRows) {
  auto tensors = test_tensors();
  std::vector<TestTensor> matrix;
  matrix.push_back(std::move(tensors[0]));
  const std::int64_t begin = part_begin(40, world_.rank(), world_.size()),
                     end = part_begin(40, world_.rank() + 1, world_.size());
  matrix[0].take({0, begin}, {61, end - begin});
  CheckpointReader reader(write_checkpoint(directory_, arrays_of(matrix), test_facts(1), world_));
  EXPECT_ALL_RANKS(reads_back(reader, matrix[0], {0, 0}, {61, 40}));
  EXPECT_ALL_RANKS(reads_back(reader, matrix[0], {20 + world_.rank(), 0}, {7, 40}));
}

/// Elements [begin, end) of a matrix that is cut without regard to its rows, as blocks: part of a
/// row, whole rows, part of a row.
std::vector<TestTensor> flat_part(const TestTensor& matrix, std::int64_t begin, std::int64_t end) {
  const std::int64_t columns = matrix.global_shape[1];
  std::vector<TestTensor> blocks;
  for (std::int64_t at = begin; at < end;) {
    const std::int64_t row = at / columns, column = at % columns;
    const bool whole = column == 0 && end - at >= columns;
    const std::int64_t rows = whole ? (end - at) / columns : 1;
    const std::int64_t count = whole ? columns : std::min(columns - column, end - at);
    blocks.push_back(matrix);
    blocks.back().take({row, column}, {rows, count});
    blocks.back().array.data = blocks.back().local.data();
    at += rows * count;
  }
  if (blocks.empty()) {
    blocks.push_back(matrix);
    blocks.back().take({0, 0}, {0, columns});
  }
  return blocks;
}

TEST_F(CheckpointRanks, SeveralBlocksOfATensorFromOneRank) {
  const TestTensor matrix = test_tensors()[0];  // 61 x 40
  const std::int64_t count = 61 * 40, me = world_.rank(), ranks = world_.size();
  // Two runs a rank, none of which begins with a row; the last rank's second is empty.
  auto mine = flat_part(matrix, part_begin(count / 2 + 7, me, ranks),
                        part_begin(count / 2 + 7, me + 1, ranks));
  const std::int64_t rest = count - count / 2 - 7, owners = std::max<std::int64_t>(1, ranks - 1);
  if (me < owners)
    for (auto& block : flat_part(matrix, count - rest + part_begin(rest, me, owners),
                                 count - rest + part_begin(rest, me + 1, owners)))
      mine.push_back(std::move(block));
  std::vector<ShardedArray> arrays;
  for (TestTensor& block : mine) {
    block.array.data = block.local.data();
    arrays.push_back(block.array);
  }
  const std::string path = write_checkpoint(directory_, arrays, test_facts(1), world_);
  CheckpointReader reader(path);
  TestTensor wanted = matrix;
  EXPECT_ALL_RANKS(reads_back(reader, wanted, {0, 0}, {61, 40}));
  EXPECT_ALL_RANKS(reads_back(reader, wanted, {30, 3}, {2, 37}));
  EXPECT_ALL_RANKS(reader.verify().empty());
  // The index finds each block under its own name in the shard.
  const hdf5::File index = hdf5::File::open(path + "/index.h5");
  const std::vector<float> whole = index.read_f32(matrix.name);
  EXPECT_ALL_RANKS(whole.size() * sizeof(float) == matrix.global.size() &&
                   std::memcmp(whole.data(), matrix.global.data(), matrix.global.size()) == 0);
}

TEST_F(CheckpointRanks, LargeBlocksAreReadInPieces) {
  // Many chunks, more than one piece, and runs that end in the next of either.
  std::vector<TestTensor> tensors;
  tensors.emplace_back("model/wide", DType::kF32, Shape{96, 40'000}, 3);
  tensors.emplace_back("model/tall", DType::kF32, Shape{90'000, 24}, 4);
  for (auto& tensor : tensors) tensor.take_rows(world_.rank(), world_.size());
  CheckpointReader reader(write_checkpoint(directory_, arrays_of(tensors), test_facts(1), world_));
  EXPECT_ALL_RANKS(reads_back(reader, tensors[0], {0, 0}, {96, 40'000}));
  EXPECT_ALL_RANKS(
      reads_back(reader, tensors[0], {3, 100}, {5, 30'000}));  // long runs, few of them
  EXPECT_ALL_RANKS(
      reads_back(reader, tensors[1], {1'000, 7}, {500, 3}));  // short runs, a small part
  EXPECT_ALL_RANKS(
      reads_back(reader, tensors[1], {5, 7}, {89'000, 3}));  // short runs over several pieces
  EXPECT_ALL_RANKS(reads_back(reader, tensors[1], {44'444, 0}, {1, 24}));
}

TEST_F(CheckpointRanks, PlainHdf5SeesTheWholeTensorsThroughTheIndex) {
  auto tensors = row_split();
  const std::string path = write_checkpoint(directory_, arrays_of(tensors), test_facts(3), world_);
  const hdf5::File index = hdf5::File::open(path + "/index.h5");
  for (const auto& tensor : tensors) {
    EXPECT_ALL_RANKS(index.info(tensor.name).is_virtual);
    EXPECT_ALL_RANKS(index.info(tensor.name).shape == tensor.global_shape);
    EXPECT_ALL_RANKS(index.text_attribute(tensor.name, "dtype") == name_of(tensor.dtype));
    if (tensor.dtype == DType::kU64) {
      const auto values = index.read_u64(tensor.name);
      EXPECT_ALL_RANKS(std::memcmp(values.data(), tensor.global.data(), tensor.global.size()) == 0);
    } else if (tensor.dtype == DType::kF32) {
      const auto values = index.read_f32(tensor.name);
      EXPECT_ALL_RANKS(std::memcmp(values.data(), tensor.global.data(), tensor.global.size()) == 0);
    } else {
      const auto values = index.read_f32(tensor.name);  // bf16 shows as f32
      bool equal = true;
      for (std::size_t i = 0; i < values.size(); ++i) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, &values[i], 4);
        std::uint16_t stored = 0;
        std::memcpy(&stored, tensor.global.data() + 2 * i, 2);
        equal = equal && bits == std::uint32_t{stored} << 16;
      }
      EXPECT_ALL_RANKS(equal);
    }
  }
}

TEST_F(CheckpointRanks, AStepThatExistsIsLeftAloneUnlessDamaged) {
  auto first = row_split(100);
  const std::string path = write_checkpoint(directory_, arrays_of(first), test_facts(5), world_);
  const std::string uuid = CheckpointReader(path).facts().uuid;
  auto second = row_split(200);
  EXPECT_ALL_RANKS(write_checkpoint(directory_, arrays_of(second), test_facts(5), world_) == path);
  EXPECT_ALL_RANKS(CheckpointReader(path).facts().uuid == uuid);
  world_.barrier();
  if (world_.rank() == 0)
    std::filesystem::resize_file(path + "/" + CheckpointReader(path).shard_files().back(), 1000);
  world_.barrier();
  EXPECT_ALL_RANKS(write_checkpoint(directory_, arrays_of(second), test_facts(5), world_) == path);
  CheckpointReader reader(path);
  EXPECT_ALL_RANKS(reader.facts().uuid != uuid);
  EXPECT_ALL_RANKS(reader.verify().empty());
  EXPECT_ALL_RANKS(names_in(directory_) == (std::vector<std::string>{"latest", "step-0000000005"}));
}

TEST_F(CheckpointRanks, TensorsMustBeTheSameOnAllRanks) {
  auto tensors = row_split();
  const int last = world_.size() - 1;
  if (world_.rank() == last) tensors[3].array.name = "optim/other";
  if (world_.size() > 1) {
    const std::string text =
        error_of([&] { write_checkpoint(directory_, arrays_of(tensors), test_facts(1), world_); },
                 ExitStatus::kFailed);
    EXPECT_ALL_RANKS(contains(
        text, fmt::format("rank {} brings other tensors than rank 0: 'optim/other' bf16 [12, 7, 3] "
                          "where rank 0 has 'optim/half' bf16 [12, 7, 3]",
                          last)));
  }
  // Two owners of a row, and a row without an owner.
  tensors = row_split();
  if (world_.size() > 1) {
    if (world_.rank() == 1) tensors[0].take({0, 0}, tensors[0].array.shape);
    const std::string text =
        error_of([&] { write_checkpoint(directory_, arrays_of(tensors), test_facts(1), world_); },
                 ExitStatus::kFailed);
    EXPECT_ALL_RANKS(
        contains(text, "ranks 0 and 1 both hold elements of 'model/embedding.weight'"));
  }
  tensors = row_split();
  if (world_.rank() == last) tensors[4].take({8}, {0});
  const std::string text =
      error_of([&] { write_checkpoint(directory_, arrays_of(tensors), test_facts(1), world_); },
               ExitStatus::kFailed);
  EXPECT_ALL_RANKS(contains(text, "of the 9 elements of 'rng/state' [9]"));
  EXPECT_ALL_RANKS(names_in(directory_).empty());
}

TEST_F(CheckpointRanks, AFailedWriteOnOneRankLeavesThePreviousCheckpointAndNothingElse) {
  auto tensors = row_split();
  const std::string good = write_checkpoint(directory_, arrays_of(tensors), test_facts(1), world_);
  const int last = world_.size() - 1;
  const auto shards = CheckpointReader(good).shard_bytes();
  struct Case {
    int rank;
    std::int64_t limit;
  };
  // While HDF5 lays the shard out; at its full size; and, on rank 0, only when the larger index
  // follows.
  for (const Case failing :
       {Case{last, 512}, Case{last, shards.back() - 100}, Case{0, shards[0] + 100}}) {
    std::string text;
    {
      std::unique_ptr<FileSizeLimit> limited;
      if (world_.rank() == failing.rank) limited = std::make_unique<FileSizeLimit>(failing.limit);
      text =
          error_of([&] { write_checkpoint(directory_, arrays_of(tensors), test_facts(2), world_); },
                   ExitStatus::kFailed);
    }
    EXPECT_ALL_RANKS(contains(text, "File too large"));
    EXPECT_ALL_RANKS(text == world_.broadcast(text, 0));
    world_.barrier();
    EXPECT_ALL_RANKS(names_in(directory_) ==
                     (std::vector<std::string>{"latest", "step-0000000001"}));
    EXPECT_ALL_RANKS(newest_checkpoint(directory_) == good);
    EXPECT_ALL_RANKS(CheckpointReader(good).verify().empty());
  }
  // And the next save works again.
  EXPECT_ALL_RANKS(
      CheckpointReader(write_checkpoint(directory_, arrays_of(tensors), test_facts(2), world_))
          .verify()
          .empty());
}

TEST_F(CheckpointRanks, AnUnusableDirectoryIsOneErrorForAll) {
  auto tensors = row_split();
  if (world_.rank() == 0) std::ofstream(directory_) << "a file where the folder should be";
  world_.barrier();
  const std::string text =
      error_of([&] { write_checkpoint(directory_, arrays_of(tensors), test_facts(2), world_); },
               ExitStatus::kFailed);
  EXPECT_ALL_RANKS(contains(text, directory_ + ": cannot create the folder"));
  EXPECT_ALL_RANKS(text == world_.broadcast(text, 0));
}

}  // namespace
}  // namespace longspan::io
