// Philox against its published answers, and the numbers made from it against their distributions.
#include "parallel/random.hpp"

#include <gtest/gtest.h>

#include <set>

namespace longspan {
namespace {

/// Random123 1.14, tests/kat_vectors, "philox4x32 10".
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox(0, 0, 0), (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const std::uint64_t ones = ~std::uint64_t{0};
  EXPECT_EQ(philox(ones, ones, ones),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  // Counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0: the first word is the
  // lowest.
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, KeysDerivedFromOneSeedDiffer) {
  std::set<std::uint64_t> keys;
  for (std::uint64_t seed = 0; seed < 4; ++seed)
    for (std::uint64_t layer = 0; layer < 64; ++layer)
      for (std::uint64_t site = 0; site < 4; ++site)
        keys.insert(derive_key(derive_key(seed, layer), site));
  EXPECT_EQ(keys.size(), 4u * 64u * 4u);
  EXPECT_NE(hash_name("blocks.0.mlp.up.weight"), hash_name("blocks.1.mlp.up.weight"));
  EXPECT_EQ(hash_name(""), 0xcbf29ce484222325ull);
  EXPECT_EQ(hash_name("a"), 0xaf63dc4c8601ec8cull);  // published FNV-1a
}

TEST(Uniform, StaysInItsInterval) {
  EXPECT_EQ(uniform_from(0), 0x1p-24f);
  EXPECT_EQ(uniform_from(~0u), 1.0f);
}

TEST(Normal, HasTheMomentsOfANormalDistribution) {
  constexpr std::uint64_t kCount = 1 << 18;
  double moments[5] = {};
  double neighbours = 0, previous = 0;
  for (std::uint64_t i = 0; i < kCount; ++i) {
    const double x = normal_at(42, i);
    ASSERT_TRUE(std::isfinite(x));
    double power = 1;
    for (double& moment : moments) moment += power / kCount, power *= x;
    neighbours += x * previous / kCount;
    previous = x;
  }
  // Five standard errors of each estimate.
  const double root = 5 / std::sqrt(static_cast<double>(kCount));
  EXPECT_NEAR(moments[1], 0, root);
  EXPECT_NEAR(moments[2], 1, root * std::sqrt(2.0));
  EXPECT_NEAR(moments[3], 0, root * std::sqrt(15.0));
  EXPECT_NEAR(moments[4], 3, root * std::sqrt(96.0));
  EXPECT_NEAR(neighbours, 0, root);
}

TEST(Normal, IsAFunctionOfKeyAndIndexAlone) {
  const float late = normal_at(7, 1000001);
  normal_at(8, 0);
  EXPECT_EQ(normal_at(7, 1000001), late);
  EXPECT_NE(normal_at(8, 1000001), late);
  EXPECT_NE(normal_at(7, 1000000), late);
}

}  // namespace
}  // namespace longspan
