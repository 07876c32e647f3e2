// ranks: 1 2 3
/// Checkpoints written in the background: what is on disk is the moment of the copy, nobody waits
/// who need not, and every failure is one outcome for all ranks.
#include "io/checkpoint_saver.hpp"

#include <gtest/gtest.h>

#include <memory>

#include "io/checkpoint_reader.hpp"
#include "io/hdf5.hpp"
#include "tests/io/checkpoint_files.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/temporary_directory.hpp"

namespace longspan::io {
namespace {

using namespace testing;

class Saver : public ::testing::Test {
 protected:
  Saver()
      : world_(Communicator::world()),
        own_(std::make_unique<testing_support::TemporaryDirectory>()),
        directory_(world_.broadcast(own_->path(), 0) + "/checkpoints") {}
  ~Saver() override { world_.barrier(); }

  std::vector<TestTensor> row_split(int salt = 0) const {
    auto tensors = test_tensors(salt);
    for (auto& tensor : tensors) tensor.take_rows(world_.rank(), world_.size());
    return tensors;
  }
  std::string step_path(int step) const { return fmt::format("{}/step-{:010}", directory_, step); }
  /// What a restart would find, with every hash right.
  bool is_good(const std::string& path) const {
    return newest_checkpoint(directory_) == path && CheckpointReader(path).verify().empty();
  }

  Communicator world_;
  std::unique_ptr<testing_support::TemporaryDirectory> own_;
  std::string directory_;
};

/// Everything the manifest says of the bytes: place, shape and hash of every block.
std::vector<std::string> manifest_of(const std::string& path) {
  const CheckpointReader reader(path);
  std::vector<std::string> rows;
  for (std::size_t i = 0; i < reader.shard_files().size(); ++i)
    rows.push_back(fmt::format("{} {}", reader.shard_files()[i], reader.shard_bytes()[i]));
  for (const TensorEntry& tensor : reader.tensors())
    for (const auto& block : tensor.blocks)
      rows.push_back(fmt::format("{} {} {} {} {} {} {:016x}", tensor.name, name_of(tensor.dtype),
                                 block.shard, to_string(block.offset), to_string(block.shape),
                                 block.file_offset, block.xxh3));
  return rows;
}

TEST_F(Saver, WritesTheMomentOfTheCopyInTheSameBytesAsInLine) {
  auto tensors = row_split();
  // Large enough that the copy is not over before it is waited for.
  tensors.emplace_back("model/large", DType::kF32, Shape{4096, 2048}, 9);
  tensors.back().take_rows(world_.rank(), world_.size());
  CheckpointSaver in_line(directory_ + "-in-line", 0, world_), behind(directory_, 0, world_);
  const std::string expected = in_line.save(arrays_of(tensors), test_facts(3));
  behind.start(arrays_of(tensors), test_facts(3));
  behind.wait_for_copy();
  std::for_each(tensors.rbegin(), tensors.rend(), [](TestTensor& tensor) {
    std::fill(tensor.local.begin(), tensor.local.end(), 'x');
  });
  behind.wait();
  const auto outcome = behind.take();
  ASSERT_TRUE(outcome);
  EXPECT_ALL_RANKS(outcome->failure.empty() && outcome->path == step_path(3) && outcome->step == 3);
  EXPECT_ALL_RANKS(!behind.take());
  EXPECT_ALL_RANKS(is_good(step_path(3)));
  EXPECT_EQ(manifest_of(step_path(3)), manifest_of(expected));
  const CheckpointReader left(step_path(3)), right(expected);
  EXPECT_EQ(left.facts().config, right.facts().config);
  EXPECT_EQ(left.facts().loss_history, right.facts().loss_history);
  EXPECT_EQ(left.facts().next_sample, right.facts().next_sample);
}

TEST_F(Saver, TheCallerGoesOnAndCommunicatesWhileTheWriterWaits) {
  const auto tensors = row_split();
  CheckpointSaver saver(directory_, 0, world_);
  saver.reserve(arrays_of(tensors));
  const std::int64_t staging = saver.staging_bytes();
  const int last = world_.size() - 1;
  {
    std::optional<hdf5::Lock> held;  // the writer of this rank comes to nothing
    if (world_.rank() == last) held.emplace();
    saver.start(arrays_of(tensors), test_facts(1));
    for (std::int64_t i = 0; i < 2000; ++i)
      ASSERT_EQ(world_.all_reduce_sum(i + world_.rank()),
                i * world_.size() + world_.size() * (world_.size() - 1) / 2);
    EXPECT_ALL_RANKS(!saver.take());
    EXPECT_ALL_RANKS(newest_checkpoint(directory_).empty());
  }
  saver.wait();
  const auto outcome = saver.take();
  EXPECT_ALL_RANKS(outcome && outcome->path == step_path(1));
  EXPECT_ALL_RANKS(is_good(step_path(1)));
  EXPECT_EQ(saver.staging_bytes(), staging) << "the copy was allocated twice";
}

TEST_F(Saver, ASaveWaitsForTheOneBeforeAndTheOldestGo) {
  CheckpointSaver saver(directory_, 2, world_);
  for (int step = 1; step <= 4; ++step) {
    const auto tensors = row_split(10 * step);
    saver.start(arrays_of(tensors), test_facts(step));
    saver.wait_for_copy();
  }
  const auto tensors = row_split(50);
  EXPECT_ALL_RANKS(saver.save(arrays_of(tensors), test_facts(5)) == step_path(5));
  EXPECT_ALL_RANKS(names_in(directory_) ==
                   (std::vector<std::string>{"latest", "step-0000000004", "step-0000000005"}));
  EXPECT_ALL_RANKS(CheckpointReader(step_path(4)).verify().empty());
}

TEST_F(Saver, EndsAfterWhatItHasBegun) {
  const auto tensors = row_split();
  {
    CheckpointSaver saver(directory_, 0, world_);
    saver.start(arrays_of(tensors), test_facts(1));
  }
  EXPECT_ALL_RANKS(is_good(step_path(1)));
}

TEST_F(Saver, AFullDiskOnOneRankIsOneOutcomeAndTheNextSaveWorks) {
  const auto tensors = row_split();
  CheckpointSaver saver(directory_, 2, world_);
  saver.save(arrays_of(tensors), test_facts(1));
  const auto shards = CheckpointReader(step_path(1)).shard_bytes();
  const int last = world_.size() - 1;
  struct Case {
    int rank;
    std::int64_t limit;
  };
  // While HDF5 lays the shard out; in the middle of its bytes; when rank 0 writes the larger index.
  for (const Case failing :
       {Case{last, 512}, Case{last, shards.back() - 100}, Case{0, shards[0] + 100}}) {
    std::unique_ptr<FileSizeLimit> limited;
    if (world_.rank() == failing.rank) limited = std::make_unique<FileSizeLimit>(failing.limit);
    world_.barrier();
    saver.start(arrays_of(tensors), test_facts(2));
    saver.wait();
    limited.reset();
    const auto outcome = saver.take();
    ASSERT_TRUE(outcome);
    EXPECT_ALL_RANKS(outcome->path.empty() && outcome->step == 2);
    EXPECT_ALL_RANKS(contains(outcome->failure, "File too large"));
    EXPECT_ALL_RANKS(!contains(outcome->failure, "\n"));
    EXPECT_ALL_RANKS(outcome->failure == world_.broadcast(outcome->failure, 0));
    EXPECT_ALL_RANKS(is_good(step_path(1)));
    EXPECT_ALL_RANKS(names_in(directory_) ==
                     (std::vector<std::string>{"latest", "step-0000000001"}));
  }
  saver.start(arrays_of(tensors), test_facts(2));
  saver.wait();
  const auto outcome = saver.take();
  EXPECT_ALL_RANKS(outcome && outcome->failure.empty() && is_good(step_path(2)));
}

TEST_F(Saver, AFolderThatVanishesIsOneOutcomeAndComesBack) {
  const auto tensors = row_split();
  CheckpointSaver saver(directory_, 2, world_);
  saver.save(arrays_of(tensors), test_facts(1));
  world_.barrier();
  if (world_.rank() == 0) {
    std::filesystem::rename(directory_, directory_ + "-away");
    std::ofstream(directory_) << "not a folder";
  }
  world_.barrier();
  saver.start(arrays_of(tensors), test_facts(2));
  saver.wait();
  const auto outcome = saver.take();
  ASSERT_TRUE(outcome);
  EXPECT_ALL_RANKS(contains(outcome->failure, directory_ + ": cannot create the folder"));
  world_.barrier();
  if (world_.rank() == 0) {
    std::filesystem::remove(directory_);
    std::filesystem::rename(directory_ + "-away", directory_);
  }
  world_.barrier();
  EXPECT_ALL_RANKS(is_good(step_path(1)));
  saver.start(arrays_of(tensors), test_facts(3));
  saver.wait();
  EXPECT_ALL_RANKS(is_good(step_path(3)));
}

TEST_F(Saver, WhatCannotBeWrittenIsAnOutcomeToo) {
  auto tensors = row_split();
  CheckpointSaver saver(directory_, 2, world_);
  if (world_.rank() == world_.size() - 1) tensors[2].array.data = nullptr;
  const bool holds = tensors[2].array.bytes() > 0;
  saver.start(arrays_of(tensors), test_facts(1));
  saver.wait();
  const auto outcome = saver.take();
  ASSERT_TRUE(outcome);
  if (world_.all_reduce_sum(std::int64_t{holds && tensors[2].array.data == nullptr}) > 0)
    EXPECT_ALL_RANKS(contains(outcome->failure, "'model/tiny' has no data"));
}

}  // namespace
}  // namespace longspan::io
