/// The order of the data: a bijection for every size, equal on every mesh, other in every epoch.
#include "io/sampler.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "parallel/error.hpp"

namespace longspan::io {
namespace {

std::vector<std::int64_t> image(const FeistelPermutation& permutation, std::int64_t size) {
  std::vector<std::int64_t> values;
  for (std::int64_t i = 0; i < size; ++i) values.push_back(permutation(i));
  return values;
}

TEST(FeistelPermutation, HitsEveryIndexOnceAndInverts) {
  for (std::int64_t size : {1, 2, 3, 4, 5, 7, 16, 17, 1000, 4097}) {
    for (std::uint64_t key : {0ull, 1ull, 0xfeedfacecafebeefull}) {
      const FeistelPermutation permutation(key, size);
      std::vector<std::int64_t> values = image(permutation, size);
      for (std::int64_t i = 0; i < size; ++i)
        ASSERT_EQ(permutation.inverse(values[static_cast<std::size_t>(i)]), i) << "size " << size;
      std::sort(values.begin(), values.end());
      std::vector<std::int64_t> expected(static_cast<std::size_t>(size));
      std::iota(expected.begin(), expected.end(), 0);
      ASSERT_EQ(values, expected) << "size " << size << " key " << key;
    }
  }
}

TEST(FeistelPermutation, LargeSizes) {
  for (std::int64_t size :
       {std::int64_t{1000003}, std::int64_t{1} << 40, (std::int64_t{1} << 40) + 1}) {
    const FeistelPermutation permutation(42, size);
    std::set<std::int64_t> seen;
    for (std::int64_t k = 0; k < 5000; ++k) {
      const std::int64_t index = size / 5000 * k;
      const std::int64_t value = permutation(index);
      ASSERT_GE(value, 0);
      ASSERT_LT(value, size);
      ASSERT_EQ(permutation.inverse(value), index);
      ASSERT_TRUE(seen.insert(value).second);
    }
  }
  std::vector<bool> seen(1000003);
  const FeistelPermutation permutation(7, 1000003);
  for (std::int64_t i = 0; i < 1000003; ++i) seen[static_cast<std::size_t>(permutation(i))] = true;
  EXPECT_EQ(std::count(seen.begin(), seen.end(), true), 1000003);
}

TEST(FeistelPermutation, Shuffles) {
  // A shuffle keeps about one index in place, and puts neighbours about a third of the size apart.
  constexpr std::int64_t kSize = 10000;
  const std::vector<std::int64_t> values = image(FeistelPermutation(3, kSize), kSize);
  std::int64_t fixed = 0;
  double distance = 0;
  for (std::int64_t i = 0; i < kSize; ++i) {
    fixed += values[static_cast<std::size_t>(i)] == i;
    if (i > 0)
      distance += std::abs(static_cast<double>(values[static_cast<std::size_t>(i)] -
                                               values[static_cast<std::size_t>(i - 1)]));
  }
  EXPECT_LT(fixed, 10);
  EXPECT_NEAR(distance / kSize / kSize, 1.0 / 3, 0.02);
  const std::vector<std::int64_t> other = image(FeistelPermutation(4, kSize), kSize);
  std::int64_t equal = 0;
  for (std::size_t i = 0; i < values.size(); ++i) equal += values[i] == other[i];
  EXPECT_LT(equal, 10);
}

TEST(Sampler, EveryEpochVisitsEveryWindowOnceInItsOwnOrder) {
  const Sampler sampler(1, 1001, 10);
  ASSERT_EQ(sampler.windows(), 100);
  std::vector<std::vector<std::int64_t>> orders;
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<std::int64_t> order;
    for (std::int64_t i = 0; i < 100; ++i) {
      EXPECT_EQ(sampler.epoch(epoch * 100 + i), epoch);
      order.push_back(sampler.first_token(epoch * 100 + i));
    }
    orders.push_back(order);
    std::sort(order.begin(), order.end());
    for (std::int64_t i = 0; i < 100; ++i) ASSERT_EQ(order[static_cast<std::size_t>(i)], 10 * i);
  }
  EXPECT_NE(orders[0], orders[1]);
  EXPECT_NE(orders[1], orders[2]);
  EXPECT_EQ(Sampler(1, 1001, 10).first_token(57), sampler.first_token(57));
  std::vector<std::int64_t> other_seed;
  for (std::int64_t i = 0; i < 100; ++i) other_seed.push_back(Sampler(2, 1001, 10).first_token(i));
  EXPECT_NE(other_seed, orders[0]);
}

TEST(Sampler, WindowsLeaveRoomForTheLastTarget) {
  EXPECT_EQ(Sampler(1, 11, 10).windows(), 1);
  EXPECT_EQ(Sampler(1, 20, 10).windows(), 1);
  EXPECT_EQ(Sampler(1, 21, 10).windows(), 2);
  EXPECT_EQ(Sampler(1, 2, 1).windows(), 1);
}

TEST(Sampler, RefusesASplitShorterThanASequence) {
  for (std::int64_t tokens : {0, 1, 10}) {
    try {
      Sampler(1, tokens, 10);
      ADD_FAILURE() << tokens << " tokens were accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.status(), ExitStatus::kUsage);
      EXPECT_NE(std::string(error.what()).find("data.sequence-length"), std::string::npos)
          << error.what();
    }
  }
  EXPECT_THROW(Sampler(1, 100, 0), Error);
}

}  // namespace
}  // namespace longspan::io
