/// Every element of every unit has one owner, whatever the numbers.
#include "parallel/shard_map.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace longspan {
namespace {

std::vector<FlatRange> units_of(const std::vector<std::int64_t>& counts) {
  std::vector<FlatRange> units;
  std::int64_t begin = 0;
  for (const std::int64_t count : counts) {
    units.push_back({begin, count});
    begin += count;
  }
  return units;
}

TEST(ShardMap, EveryElementHasOneOwnerAndPartsAreBalanced) {
  for (const auto& counts : std::vector<std::vector<std::int64_t>>{
           {12}, {7, 1, 0, 23}, {1, 1, 1}, {0}, {1000003, 17, 64}, {2, 5}})
    for (int ranks = 1; ranks <= 9; ++ranks) {
      const ShardMap map(units_of(counts), ranks);
      for (int u = 0; u < map.units(); ++u) {
        std::int64_t next = map.unit(u).begin, shortest = map.unit(u).count, longest = 0;
        for (int r = 0; r < ranks; ++r) {
          const FlatRange mine = map.owned(u, r);
          EXPECT_EQ(mine.begin, next) << u << " of rank " << r;
          ASSERT_GE(mine.count, 0);
          next = mine.end();
          shortest = std::min(shortest, mine.count);
          longest = std::max(longest, mine.count);
        }
        EXPECT_EQ(next, map.unit(u).end());
        EXPECT_LE(longest - shortest, 1);
      }
    }
}

TEST(ShardMap, PartsOfAShardLieOneBehindTheOther) {
  const ShardMap map(units_of({7, 1, 0, 23}), 4);
  std::int64_t all = 0;
  for (int r = 0; r < 4; ++r) {
    EXPECT_EQ(map.shard_offset(0, r), 0);
    for (int u = 0; u < 4; ++u)
      EXPECT_EQ(map.shard_offset(u + 1, r), map.shard_offset(u, r) + map.owned(u, r).count);
    all += map.shard_offset(4, r);
  }
  EXPECT_EQ(all, 31);
}

TEST(ShardMap, MoreRanksThanElements) {
  const ShardMap map(units_of({3}), 8);
  int owners = 0;
  for (int r = 0; r < 8; ++r) owners += map.owned(0, r).count > 0;
  EXPECT_EQ(owners, 3);
}

}  // namespace
}  // namespace longspan
