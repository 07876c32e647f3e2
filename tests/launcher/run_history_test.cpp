/// history.jsonl: lines of several writers, lines cut short, and the wish to stop.
#include "launcher/run_history.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

class RunHistoryTest : public testing::Test {
 protected:
  testing_support::TemporaryDirectory folder_;
  std::string run_ = folder_.file("deep/run");
};

TEST_F(RunHistoryTest, WhatIsWrittenIsRead) {
  EXPECT_TRUE(read_history(run_).empty());
  append_event(run_, {.event = "submitted", .job = "12", .where = "slurm-12.out"});
  append_event(run_, {.time = 5,
                      .event = "ended",
                      .job = "12",
                      .restart = 2,
                      .step = 40,
                      .ranks = 4,
                      .status = 75,
                      .where = "n1:99",
                      .note = "a \"note\"\nof two"});
  const auto events = read_history(run_);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].event, "submitted");
  EXPECT_GT(events[0].time, 1.6e9);
  EXPECT_EQ(events[0].step, -1);
  EXPECT_EQ(events[0].status, -1);
  EXPECT_EQ(events[1].time, 5);
  EXPECT_EQ(events[1].job, "12");
  EXPECT_EQ(events[1].restart, 2);
  EXPECT_EQ(events[1].step, 40);
  EXPECT_EQ(events[1].ranks, 4);
  EXPECT_EQ(events[1].status, 75);
  EXPECT_EQ(events[1].where, "n1:99");
  EXPECT_EQ(events[1].note, "a \"note\"\nof two");
}

TEST_F(RunHistoryTest, ALineCutShortHarmsNoOther) {
  append_event(run_, {.event = "started"});
  std::ofstream(run_ + "/history.jsonl", std::ios::app) << "{\"time\": 3, \"event\": \"en";
  append_event(run_, {.event = "restarted"});
  const auto events = read_history(run_);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[1].event, "restarted");
}

TEST_F(RunHistoryTest, SeveralWritersLoseNothing) {
  std::vector<std::thread> writers;
  for (int w = 0; w < 4; ++w)
    writers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) append_event(run_, {.event = "started", .note = "x"});
    });
  for (auto& writer : writers) writer.join();
  EXPECT_EQ(read_history(run_).size(), 200u);
}

TEST_F(RunHistoryTest, AWishToStopStaysUntilWithdrawn) {
  append_event(run_, {.event = "started"});
  EXPECT_FALSE(stop_requested(run_));
  request_stop(run_);
  request_stop(run_);
  EXPECT_TRUE(stop_requested(run_));
  withdraw_stop(run_);
  withdraw_stop(run_);
  EXPECT_FALSE(stop_requested(run_));
}

}  // namespace
}  // namespace longspan::launcher
