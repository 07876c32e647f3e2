#include "model/lr_schedule.hpp"

#include <gtest/gtest.h>

namespace longspan::model {
namespace {

TEST(LearningRate, WarmsUpThenDecays) {
  OptimizerConfig c;
  c.learning_rate = 1.0, c.minimum_learning_rate = 0.1, c.warmup_steps = 10;
  for (ScheduleKind kind :
       {ScheduleKind::kCosine, ScheduleKind::kLinear, ScheduleKind::kConstant}) {
    c.schedule = kind;
    EXPECT_DOUBLE_EQ(learning_rate_at(c, 1, 110), 0.1);
    EXPECT_DOUBLE_EQ(learning_rate_at(c, 5, 110), 0.5);
    EXPECT_DOUBLE_EQ(learning_rate_at(c, 10, 110), 1.0);
  }
  c.schedule = ScheduleKind::kCosine;
  EXPECT_NEAR(learning_rate_at(c, 60, 110), 0.55, 1e-12);
  EXPECT_NEAR(learning_rate_at(c, 110, 110), 0.1, 1e-12);
  EXPECT_NEAR(learning_rate_at(c, 500, 110), 0.1, 1e-12);
  c.schedule = ScheduleKind::kLinear;
  EXPECT_NEAR(learning_rate_at(c, 35, 110), 0.775, 1e-12);
  c.schedule = ScheduleKind::kConstant;
  EXPECT_DOUBLE_EQ(learning_rate_at(c, 110, 110), 1.0);
}

TEST(LearningRate, NoWarmUpStartsAtTheFullRate) {
  OptimizerConfig c;
  c.schedule = ScheduleKind::kConstant;
  EXPECT_DOUBLE_EQ(learning_rate_at(c, 1, 10), c.learning_rate);
}

}  // namespace
}  // namespace longspan::model
