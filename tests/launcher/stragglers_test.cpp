/// Who is called slow, when, and how often.
#include "launcher/stragglers.hpp"

#include <gtest/gtest.h>

namespace longspan::launcher {
namespace {

TEST(Stragglers, OneThatTakesLongerThanMostIsNamedOnceAnEpisode) {
  StragglerRule rule;
  EXPECT_TRUE(rule.judge({10, 10.5, 11, 12.9}).empty()) << "within 1.3 x the median";
  const auto slow = rule.judge({10, 10, 10, 14});
  ASSERT_EQ(slow.size(), 1u);
  EXPECT_EQ(slow[0].rank, 3);
  EXPECT_NEAR(slow[0].times, 1.4, 1e-9);
  EXPECT_TRUE(rule.judge({10, 10, 10, 15}).empty()) << "the same episode";
  EXPECT_TRUE(rule.judge({10, 10, 10, 12.5}).empty()) << "not recovered yet";
  EXPECT_TRUE(rule.judge({10, 10, 10, 14}).empty()) << "still the same episode";
  EXPECT_TRUE(rule.judge({10, 10, 10, 11}).empty());
  EXPECT_EQ(rule.judge({10, 10, 10, 14}).size(), 1u) << "a new episode";
}

TEST(Stragglers, OfTwoRanksTheSlowerOneIsTold) {
  StragglerRule rule;
  const auto slow = rule.judge({14, 10});
  ASSERT_EQ(slow.size(), 1u);
  EXPECT_EQ(slow[0].rank, 0);
}

TEST(Stragglers, AHiccupIsNotWorthALine) {
  StragglerRule rule;
  EXPECT_TRUE(rule.judge({0.02, 0.06}).empty());
  EXPECT_TRUE(rule.judge({0, 0}).empty());
  EXPECT_TRUE(rule.judge({0.2, 1.1}).empty());
  EXPECT_TRUE(rule.judge({0.2, 0.2}).empty());
  EXPECT_TRUE(rule.judge({0.2, 1.1}).empty()) << "it had recovered";
}

TEST(Stragglers, WhoStaysALittleSlowIsNamedWhenThatHasCostASecond) {
  StragglerRule rule;
  for (int window = 1; window <= 9; ++window)
    EXPECT_TRUE(rule.judge({0.2, 0.31}).empty()) << window;
  const auto slow = rule.judge({0.2, 0.31});
  ASSERT_EQ(slow.size(), 1u);
  EXPECT_EQ(slow[0].rank, 1);
  EXPECT_TRUE(rule.judge({0.2, 0.31}).empty()) << "once";
}

TEST(Stragglers, AllSlowIsNobodySlow) {
  StragglerRule rule;
  EXPECT_TRUE(rule.judge({10, 10, 10}).empty());
  EXPECT_TRUE(rule.judge({100, 100, 100}).empty());
}

}  // namespace
}  // namespace longspan::launcher
