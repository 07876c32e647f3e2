// ranks: 1 2 3 4
/// Which part of a weight and which tokens a tensor rank has, and the way between own rows and all.
#include "parallel/tensor_parallel.hpp"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "parallel/context_parallel.hpp"
#include "parallel/error.hpp"
#include "parallel/random.hpp"
#include "support/ranks.hpp"

namespace longspan {
namespace {

constexpr std::int64_t kSequences = 3, kOwn = 5, kWidth = 7;

/// Element i of what rank r brings.
float value(int rank, std::int64_t i) {
  return normal_at(static_cast<std::uint64_t>(rank) + 1, static_cast<std::uint64_t>(i));
}

std::vector<float> values(int rank, std::int64_t count) {
  std::vector<float> all;
  for (std::int64_t i = 0; i < count; ++i) all.push_back(value(rank, i));
  return all;
}

TEST(TensorParallel, OneRankHoldsEverything) {
  const TensorShards one = shard_weights(nullptr);
  EXPECT_TRUE(one.alone());
  const DimPart part = one.part_of(7);
  EXPECT_EQ(part.begin, 0);
  EXPECT_EQ(part.count, 7);
  EXPECT_EQ(part.total, 7);
  EXPECT_EQ(one.heads_of(3).count, 3);
}

TEST(TensorParallel, PartsCoverADimAndFewHeadsAreHeldBySeveral) {
  for (const int ranks : {1, 2, 4, 8}) {
    std::int64_t next = 0;
    for (int r = 0; r < ranks; ++r) {
      const TensorShards shards{r, ranks, nullptr};
      const DimPart part = shards.part_of(24).times(5);
      EXPECT_EQ(part.begin, next);
      EXPECT_EQ(part.total, 120);
      next += part.count;
      // Two heads: ranks [0, ranks/2) have the first, the others the second.
      const DimPart heads = shards.heads_of(2);
      EXPECT_EQ(heads.count, ranks == 1 ? 2 : 1);
      EXPECT_EQ(heads.begin, ranks == 1 ? 0 : r / (ranks / 2));
      EXPECT_EQ(heads.total, 2);
    }
    EXPECT_EQ(next, 120);
  }
  const TensorShards four{0, 4, nullptr};
  EXPECT_THROW(four.part_of(6), Error);
  EXPECT_THROW(four.heads_of(6), Error);
}

TEST(TensorParallel, TheTokensOfEveryContextRankDivideAmongTheTensorRanks) {
  for (const SequenceLayout layout : {SequenceLayout::kContiguous, SequenceLayout::kZigzag})
    for (const std::int64_t length : {1, 7, 29, 64})
      for (const int context : {1, 2, 3})
        for (const std::int64_t tensor : {1, 2, 3, 4}) {
          std::multiset<std::int32_t> seen;
          std::set<std::size_t> counts;
          for (int r = 0; r < context; ++r) {
            const auto positions = sequence_positions(length, r, context, layout, tensor);
            counts.insert(positions.size());
            for (const std::int32_t p : positions)
              if (p >= 0) seen.insert(p);
          }
          EXPECT_EQ(counts.size(), 1u);
          EXPECT_EQ(*counts.begin() % static_cast<std::size_t>(tensor), 0u);
          EXPECT_EQ(seen.size(), static_cast<std::size_t>(length));
          EXPECT_EQ(std::set(seen.begin(), seen.end()).size(), seen.size());
          EXPECT_EQ(*seen.rbegin(), length - 1);
          // No more padding than it takes.
          const std::int64_t unit =
              layout == SequenceLayout::kZigzag && context > 1 && tensor % 2 == 0 ? tensor / 2
                                                                                  : tensor;
          const std::int64_t chunks =
              layout == SequenceLayout::kZigzag && context > 1 ? 2 * context : context;
          EXPECT_LT(static_cast<std::int64_t>(*counts.begin()) * context, length + chunks * unit);
        }
}

TEST(TensorParallel, GatheredRowsStandInRankOrderInEverySequence) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  const TensorShards shards = shard_weights(group.get());
  if (shards.alone()) return;  // one rank never gathers: OneRankHoldsEverything
  const std::int64_t ranks = world.size();
  const auto own = values(world.rank(), kSequences * kOwn * kWidth);
  std::vector<float> gathered(own.size() * static_cast<std::size_t>(ranks));
  shards.gather_sequence({own.data(), kSequences * kOwn, kWidth}, kSequences,
                         {gathered.data(), kSequences * kOwn * ranks, kWidth});
  std::vector<float> expected;
  for (std::int64_t b = 0; b < kSequences; ++b)
    for (int r = 0; r < ranks; ++r)
      for (std::int64_t i = 0; i < kOwn * kWidth; ++i)
        expected.push_back(value(r, b * kOwn * kWidth + i));
  EXPECT_ALL_RANKS(gathered == expected);
  EXPECT_EQ(group->bytes_sent(), 4 * (ranks - 1) * kSequences * kOwn * kWidth);
}

TEST(TensorParallel, SumsAreTakenInRankOrderBitForBit) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  const TensorShards shards = shard_weights(group.get());
  if (shards.alone()) return;
  const std::int64_t ranks = world.size(), sequence = kOwn * ranks * kWidth;
  const auto parts = values(world.rank(), kSequences * sequence);
  std::vector<float> own(static_cast<std::size_t>(kSequences * kOwn * kWidth));
  shards.scatter_sum({parts.data(), kSequences * kOwn * ranks, kWidth}, kSequences,
                     {own.data(), kSequences * kOwn, kWidth});
  std::vector<float> expected;
  for (std::int64_t b = 0; b < kSequences; ++b)
    for (std::int64_t i = 0; i < kOwn * kWidth; ++i) {
      const std::int64_t at = b * sequence + world.rank() * kOwn * kWidth + i;
      float sum = value(0, at);
      for (int r = 1; r < ranks; ++r) sum += value(r, at);
      expected.push_back(sum);
    }
  EXPECT_ALL_RANKS(own == expected);
  EXPECT_EQ(group->bytes_sent(), 4 * (ranks - 1) * kSequences * kOwn * kWidth);
}

}  // namespace
}  // namespace longspan
