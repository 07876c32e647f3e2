/// Checkpoints of one process: facts come back, damage is found and named, folders that crashes
/// leave behind do no harm.
#include "io/checkpoint.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "io/checkpoint_index.hpp"
#include "io/checkpoint_reader.hpp"
#include "io/file.hpp"
#include "io/statistics.hpp"
#include "tests/io/checkpoint_files.hpp"
#include "tests/support/temporary_directory.hpp"

namespace longspan::io {
namespace {

using namespace testing;
namespace fs = std::filesystem;

class Checkpoint : public ::testing::Test {
 protected:
  std::string write(std::int64_t step, int salt = 0) {
    auto tensors = test_tensors(salt);
    return write_checkpoint(directory_, arrays_of(tensors), test_facts(step), Communicator::self());
  }
  std::string step_path(std::int64_t step) const {
    return directory_ + "/" + step_folder_name(step);
  }

  testing_support::TemporaryDirectory own_;
  std::string directory_ = own_.file("run/checkpoints");
};

const char* const kShard = "shard-00000-of-00001.h5";

/// The only block of a tensor.
TensorEntry::Block block_in(const std::string& path, const std::string& name) {
  CheckpointReader reader(path);
  for (const TensorEntry& tensor : reader.tensors())
    if (tensor.name == name) return tensor.blocks.at(0);
  ADD_FAILURE() << name;
  return {};
}

TEST_F(Checkpoint, FactsComeBack) {
  const CheckpointReader reader(write(12));
  const CheckpointFacts expected = test_facts(12);
  const CheckpointFacts& facts = reader.facts();
  EXPECT_EQ(facts.step, 12);
  EXPECT_EQ(facts.tokens_seen, expected.tokens_seen);
  EXPECT_EQ(facts.seed, expected.seed);
  EXPECT_EQ(facts.next_sample, expected.next_sample);
  EXPECT_EQ(facts.dataset_uuid, expected.dataset_uuid);
  EXPECT_EQ(facts.tokenizer, expected.tokenizer);
  EXPECT_EQ(facts.config, expected.config);
  EXPECT_EQ(facts.program_version, expected.program_version);
  EXPECT_EQ(facts.loss_history, expected.loss_history);
  EXPECT_EQ(facts.world_size, 1);
  EXPECT_NEAR(static_cast<double>(facts.created_unix), static_cast<double>(std::time(nullptr)), 60);
  EXPECT_EQ(facts.uuid.size(), 36U);
  EXPECT_EQ(reader.tensors().size(), 6U);
  EXPECT_TRUE(reader.has("model/tiny"));
  EXPECT_FALSE(reader.has("model/tinny"));
  EXPECT_EQ(reader.shard_files(), std::vector<std::string>{kShard});
}

TEST_F(Checkpoint, EmptyTextsAndTensorsAreFine) {
  TestTensor none("model/none", DType::kF32, {0, 3}, 1);
  const std::string path =
      write_checkpoint(directory_, {none.array}, CheckpointFacts{}, Communicator::self());
  CheckpointReader reader(path);
  EXPECT_TRUE(reader.verify().empty());
  EXPECT_EQ(reader.facts().config, "");
  EXPECT_EQ(reader.statistics("model/none").count, 0);
  reader.read(none.array);
}

TEST_F(Checkpoint, WrongWishesNameBothShapes) {
  CheckpointReader reader(write(1));
  TestTensor other("model/norm.weight", DType::kF32, {41}, 1);
  EXPECT_TRUE(contains(error_of([&] { reader.read(other.array); }, ExitStatus::kUsage),
                       "'model/norm.weight' is f32 [40] in the checkpoint, f32 [41] is wanted"));
  TestTensor absent("model/bias", DType::kF32, {4}, 1);
  EXPECT_TRUE(contains(error_of([&] { reader.read(absent.array); }, ExitStatus::kUsage),
                       "holds no tensor 'model/bias'"));
}

TEST_F(Checkpoint, StatisticsAreThoseOfTheDefinition) {
  TestTensor tensor("model/w", DType::kF32, {1, 6}, 0);
  const std::vector<float> values = {1, -3, NAN, 2, INFINITY, 4};
  tensor.array.data = const_cast<float*>(values.data());
  CheckpointReader reader(
      write_checkpoint(directory_, {tensor.array}, test_facts(1), Communicator::self()));
  const TensorStatistics s = reader.statistics("model/w");
  EXPECT_EQ(s.count, 6);
  EXPECT_EQ(s.nan, 1);
  EXPECT_EQ(s.inf, 1);
  EXPECT_DOUBLE_EQ(s.mean, 1.0);
  EXPECT_DOUBLE_EQ(s.standard_deviation, std::sqrt((0.0 + 16 + 1 + 9) / 4));
  EXPECT_DOUBLE_EQ(s.norm, std::sqrt(1.0 + 9 + 4 + 16));
  EXPECT_DOUBLE_EQ(s.minimum, -3);
  EXPECT_DOUBLE_EQ(s.maximum, 4);
}

TEST(Statistics, AnyLengthAndTypeGivesTheSumsOfThePlainLoop) {
  for (const std::int64_t count : {1, 2, 7, 8, 9, 23, 1000}) {
    std::vector<float> f;
    std::vector<std::int32_t> i;
    double sum = 0, squares = 0, low = 1e30, high = -1e30;
    std::int64_t nan = 0, inf = 0, finite = 0;
    for (std::int64_t k = 0; k < count; ++k) {
      const double value = 1 + 1e-3 * static_cast<double>((k * 37) % 101);
      i.push_back(static_cast<std::int32_t>(k * 3 - 50));
      f.push_back(k % 11 == 0 ? NAN : k % 13 == 4 ? -INFINITY : static_cast<float>(value));
      if (std::isnan(f.back())) {
        ++nan;
      } else if (std::isinf(f.back())) {
        ++inf;
      } else {
        const double x = f.back();
        sum += x, squares += x * x, low = std::min(low, x), high = std::max(high, x), ++finite;
      }
    }
    RunningStatistics floats, integers;
    floats.add(DType::kF32, f.data(), count * 4);
    integers.add(DType::kI32, i.data(), count * 4);
    const TensorStatistics s = floats.result();
    EXPECT_EQ(s.count, count);
    EXPECT_EQ(s.nan, nan);
    EXPECT_EQ(s.inf, inf);
    if (finite > 0) {
      EXPECT_NEAR(s.mean, sum / static_cast<double>(finite), 1e-12);
      EXPECT_NEAR(s.norm, std::sqrt(squares), 1e-9);
      EXPECT_EQ(s.minimum, low);
      EXPECT_EQ(s.maximum, high);
      double deviations = 0;
      for (const float x : f)
        if (std::isfinite(x)) deviations += (x - s.mean) * (x - s.mean);
      EXPECT_NEAR(s.standard_deviation, std::sqrt(deviations / static_cast<double>(finite)), 1e-9);
    }
    EXPECT_EQ(integers.result().minimum, -50);
    EXPECT_EQ(integers.result().maximum, static_cast<double>(count - 1) * 3 - 50);
    EXPECT_EQ(integers.result().count, count);
  }
  const std::uint16_t bf16 = 0xc020;
  EXPECT_EQ(element_value(DType::kBF16, &bf16), -2.5);
}

TEST_F(Checkpoint, AFlippedByteIsFoundAndNamed) {
  const std::string path = write(1);
  const auto block = block_in(path, "optim/half");
  flip_byte(path + "/" + kShard, block.file_offset + 100);
  CheckpointReader reader(path);
  const auto problems = reader.verify();
  ASSERT_EQ(problems.size(), 1U);
  EXPECT_EQ(problems[0].shard, kShard);
  EXPECT_EQ(problems[0].tensor, "optim/half");
  EXPECT_TRUE(contains(problems[0].what, fmt::format("{:016x} was written", block.xxh3)))
      << problems[0].what;
  TestTensor half("optim/half", DType::kBF16, {12, 7, 3}, 4);
  const std::string text = error_of([&] { reader.read(half.array); }, ExitStatus::kDamaged);
  EXPECT_TRUE(contains(text, std::string(kShard) + ": tensor 'optim/half' is damaged")) << text;
  EXPECT_TRUE(contains(text, fmt::format("{:016x} was written", block.xxh3))) << text;
  TestTensor norm("model/norm.weight", DType::kF32, {40}, 2);
  std::vector<char> expected = norm.global;
  norm.local.assign(norm.local.size(), 0);
  norm.array.data = norm.local.data();
  reader.read(norm.array);  // its neighbours are still good
  EXPECT_EQ(norm.local, expected);
}

TEST_F(Checkpoint, ATruncatedShardIsFoundAndNamed) {
  const std::string path = write(1);
  const std::string shard = path + "/" + kShard;
  const auto size = fs::file_size(shard);
  fs::resize_file(shard, block_in(path, "optim/exp_avg/norm.weight").file_offset + 8);
  CheckpointReader reader(path);
  const auto problems = reader.verify();
  ASSERT_GE(problems.size(), 2U);
  EXPECT_EQ(problems[0].shard, kShard);
  EXPECT_TRUE(contains(problems[0].what, fmt::format("{} were written (truncated)", size)))
      << problems[0].what;
  EXPECT_EQ(problems.back().tensor, "optim/exp_avg/norm.weight");
  TestTensor norm("model/norm.weight", DType::kF32, {40}, 2);
  EXPECT_TRUE(
      contains(error_of([&] { reader.read(norm.array); }, ExitStatus::kDamaged), "(truncated)"));
  EXPECT_EQ(newest_checkpoint(directory_), "");
}

TEST_F(Checkpoint, MissingAndForeignShardsAreFoundAndNamed) {
  const std::string one = write(1), two = write(2, 50);
  fs::copy_file(two + "/" + kShard, one + "/" + kShard, fs::copy_options::overwrite_existing);
  auto problems = CheckpointReader(one).verify();
  ASSERT_EQ(problems.size(), 1U);
  EXPECT_EQ(problems[0].shard, kShard);
  EXPECT_TRUE(contains(problems[0].what, "belongs to another checkpoint (step 2"))
      << problems[0].what;
  TestTensor norm("model/norm.weight", DType::kF32, {40}, 2);
  CheckpointReader reader(one);
  EXPECT_TRUE(contains(error_of([&] { reader.read(norm.array); }, ExitStatus::kDamaged),
                       "belongs to another checkpoint"));

  fs::remove(two + "/" + kShard);
  problems = CheckpointReader(two).verify();
  ASSERT_EQ(problems.size(), 7U);  // the shard and its six tensors
  EXPECT_TRUE(contains(problems[0].what, "missing"));
  EXPECT_EQ(problems[1].tensor, "model/embedding.weight");
}

TEST_F(Checkpoint, ADamagedIndexIsRefused) {
  const std::string index = write(1) + "/index.h5";
  const auto size = fs::file_size(index);
  const auto error = [&] {
    return error_of([&] { CheckpointReader reader(step_path(1)); }, ExitStatus::kDamaged);
  };
  fs::copy_file(index, own_.file("good.h5"));
  // Every byte is either in checksummed metadata, in the hashed tables, or unused: none may change
  // what is read.
  int refused = 0;
  const std::string uuid = CheckpointReader(step_path(1)).facts().uuid;
  for (std::uint64_t at = 0; at < size; at += 97) {
    flip_byte(index, at);
    try {
      const CheckpointReader reader(step_path(1));
      EXPECT_EQ(reader.facts().uuid, uuid) << at;
      EXPECT_EQ(reader.facts().config, test_facts(1).config) << at;
      EXPECT_EQ(reader.tensors().at(3).global_shape, (Shape{12, 7, 3})) << at;
      EXPECT_EQ(reader.tensors().at(3).blocks.at(0).shape, (Shape{12, 7, 3})) << at;
    } catch (const Error& damaged) {
      EXPECT_EQ(damaged.status(), ExitStatus::kDamaged) << damaged.what();
      ++refused;
    }
    flip_byte(index, at);
  }
  EXPECT_GT(refused, 20);
  fs::resize_file(index, size - 1);
  EXPECT_TRUE(contains(error(), "truncated"));
  fs::remove(index);
  EXPECT_TRUE(contains(error(), "it has no index.h5"));
  fs::copy_file(step_path(1) + "/" + kShard, index);
  EXPECT_TRUE(contains(error(), "not the index of a checkpoint"));
}

TEST_F(Checkpoint, LatestIsTheNewestUnlessDamaged) {
  EXPECT_EQ(newest_checkpoint(directory_), "");
  const std::string one = write(1), two = write(2), ten = write(10);
  EXPECT_EQ(fs::read_symlink(directory_ + "/latest"), step_folder_name(10));
  EXPECT_EQ(newest_checkpoint(directory_), ten);
  fs::remove(ten + "/" + kShard);
  EXPECT_EQ(newest_checkpoint(directory_), two);
  fs::remove(directory_ + "/latest");
  EXPECT_EQ(newest_checkpoint(directory_), two);
  fs::create_directory_symlink(step_folder_name(1),
                               directory_ + "/latest");  // someone wants to go back
  EXPECT_EQ(newest_checkpoint(directory_), one);
  fs::remove(two + "/index.h5");
  fs::remove(directory_ + "/latest");
  EXPECT_EQ(newest_checkpoint(directory_), one);
}

TEST_F(Checkpoint, LeftoversOfACrashAreIgnoredAndRemoved) {
  const std::string one = write(1);
  const std::string dead = directory_ + "/.step-0000000002.tmp";
  fs::copy(one, dead, fs::copy_options::recursive);
  fs::create_directories(directory_ + "/step-abc");
  std::ofstream(directory_ + "/notes.txt") << "mine";
  EXPECT_EQ(newest_checkpoint(directory_), one);
  EXPECT_EQ(list_checkpoints(directory_).size(), 1U);
  write(2);  // over the leftovers of the same step
  EXPECT_FALSE(fs::exists(dead));
  fs::create_directories(directory_ + "/.step-0000000003.tmp");
  prune_checkpoints(directory_, 0);
  EXPECT_EQ(names_in(directory_),
            (std::vector<std::string>{"latest", "notes.txt", "step-0000000001", "step-0000000002",
                                      "step-abc"}));
  EXPECT_TRUE(CheckpointReader(step_path(2)).verify().empty());
}

TEST_F(Checkpoint, PruningKeepsTheNewestCompleteOnes) {
  for (int step = 1; step <= 5; ++step) write(step);
  prune_checkpoints(directory_, 3);
  EXPECT_EQ(names_in(directory_), (std::vector<std::string>{"latest", "step-0000000003",
                                                            "step-0000000004", "step-0000000005"}));
  fs::remove(step_path(5) + "/index.h5");
  prune_checkpoints(directory_, 1);  // 5 is damaged: 4 is the one to keep
  EXPECT_FALSE(fs::exists(step_path(3)));
  EXPECT_EQ(newest_checkpoint(directory_), step_path(4));
}

TEST_F(Checkpoint, TheFolderCanBeMovedAndReachedByLinks) {
  write(1);
  fs::rename(own_.file("run"), own_.file("moved"));
  EXPECT_TRUE(CheckpointReader(own_.file("moved/checkpoints/latest")).verify().empty());
  EXPECT_TRUE(CheckpointReader(own_.file("moved/checkpoints/latest/index.h5")).verify().empty());
  EXPECT_TRUE(CheckpointReader(own_.file("moved/checkpoints/step-0000000001/")).verify().empty());
}

TEST(Files, AFullDiskIsExplained) {
  RawFile full = RawFile::open("/dev/full", RawFile::Mode::kWrite);
  const std::string text = error_of([&] { full.write("x", 1, 0); }, ExitStatus::kFailed);
  EXPECT_TRUE(contains(text, "/dev/full: cannot write 1 B: No space left on device (")) << text;
  EXPECT_TRUE(contains(text, " free): free space there, or write elsewhere")) << text;
  const std::string needed = error_of(
      [&] { require_free_space("/tmp", std::int64_t{1} << 60, "the checkpoint of step 3"); },
      ExitStatus::kFailed);
  EXPECT_TRUE(contains(needed, "/tmp: the checkpoint of step 3 needs 1152.9 PB, ")) << needed;
}

TEST(Files, PathsAndSizesAsText) {
  EXPECT_EQ(parent_path("a/b/"), "a");
  EXPECT_EQ(parent_path("a"), ".");
  EXPECT_EQ(parent_path("/a"), "/");
  EXPECT_EQ(parent_path("a//b"), "a");
  EXPECT_EQ(base_name("a/b//"), "b");
  EXPECT_EQ(base_name("b"), "b");
  EXPECT_EQ(base_name("/"), "/");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1000), "1.0 kB");
  EXPECT_EQ(format_bytes(999'960), "1.0 MB");
  EXPECT_EQ(format_bytes(12'345'678'901), "12.3 GB");
}

}  // namespace
}  // namespace longspan::io
