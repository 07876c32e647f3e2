/// What follows when the ranks have ended: a restart, after what pause, or the end.
#include "launcher/supervisor.hpp"

#include <gtest/gtest.h>

#include <csignal>
#include <string>
#include <vector>

namespace longspan::launcher {
namespace {

using Kind = Verdict::Kind;

TEST(Supervisor, WhatIsNoFailureEndsTheRun) {
  Supervisor supervisor(3);
  EXPECT_EQ(supervisor.judge({.status = 0, .step = 9}).kind, Kind::kEnd);
  // train.stop-after, without anybody's wish: it is not overruled by another start.
  EXPECT_EQ(supervisor.judge({.status = 75, .step = 9}).kind, Kind::kEnd);
  EXPECT_EQ(supervisor.restarts(), 0);
}

TEST(Supervisor, AWishToStopIsNotAnsweredWithAnotherStart) {
  for (const int status : {1, 75, 128 + SIGKILL}) {
    Supervisor supervisor(3);
    EXPECT_EQ(supervisor.judge({.status = status, .stop_wished = true}).kind, Kind::kEnd) << status;
  }
}

TEST(Supervisor, WhatTheNextStartWouldFindAgainIsNotTried) {
  for (const int status : {2, 3}) {
    Supervisor supervisor(3);
    EXPECT_EQ(supervisor.judge({.status = status}).kind, Kind::kGiveUp) << status;
    EXPECT_EQ(supervisor.restarts(), 0);
  }
}

TEST(Supervisor, EveryOtherEndIsFollowedByARestart) {
  for (const int status : {1, 7, 127, 128 + SIGSEGV, 128 + SIGKILL}) {
    Supervisor supervisor(3);
    const Verdict verdict = supervisor.judge({.status = status, .step = 4});
    EXPECT_EQ(verdict.kind, Kind::kRestart) << status;
    EXPECT_EQ(verdict.pause_seconds, 1);
    EXPECT_EQ(supervisor.restarts(), 1);
  }
}

TEST(Supervisor, WhatNeverBeganHasNotCrashed) {
  Supervisor supervisor(3);
  EXPECT_EQ(supervisor.judge({.status = 1, .began = false}).kind, Kind::kGiveUp);
  EXPECT_EQ(supervisor.restarts(), 0);
  // After a crash it may: the node that was lost is not back yet.
  EXPECT_EQ(supervisor.judge({.status = 137, .step = 5}).kind, Kind::kRestart);
  EXPECT_EQ(supervisor.judge({.status = 1, .step = 4, .began = false}).kind, Kind::kRestart);
}

TEST(Supervisor, TheSameStepTwiceIsEnough) {
  Supervisor supervisor(100);
  EXPECT_EQ(supervisor.judge({.status = 1, .step = 6, .checkpoint = 5}).kind, Kind::kRestart);
  const Verdict second = supervisor.judge({.status = 137, .step = 6, .checkpoint = 5});
  EXPECT_EQ(second.kind, Kind::kGiveUp);
  EXPECT_NE(second.why.find("step 7 has failed twice"), std::string::npos) << second.why;
}

TEST(Supervisor, AStepOrACheckpointBetweenTwoFailuresIsHope) {
  Supervisor supervisor(100);
  EXPECT_EQ(supervisor.judge({.status = 1, .step = 6, .checkpoint = 5}).kind, Kind::kRestart);
  EXPECT_EQ(supervisor.judge({.status = 1, .step = 8, .checkpoint = 5}).kind, Kind::kRestart);
  // Killed sooner than before, but not at the same step.
  EXPECT_EQ(supervisor.judge({.status = 1, .step = 7, .checkpoint = 5}).kind, Kind::kRestart);
  EXPECT_EQ(supervisor.judge({.status = 1, .step = 7, .checkpoint = 7}).kind, Kind::kRestart);
  EXPECT_EQ(supervisor.judge({.status = 1, .step = 7, .checkpoint = 7}).kind, Kind::kGiveUp);
}

TEST(Supervisor, RestartsAreCounted) {
  Supervisor supervisor(2);
  EXPECT_EQ(supervisor.judge({.status = 1, .step = 1}).kind, Kind::kRestart);
  EXPECT_EQ(supervisor.judge({.status = 1, .step = 2}).kind, Kind::kRestart);
  const Verdict third = supervisor.judge({.status = 1, .step = 3});
  EXPECT_EQ(third.kind, Kind::kGiveUp);
  EXPECT_NE(third.why.find("2 restarts (--max-restarts)"), std::string::npos) << third.why;
  EXPECT_EQ(supervisor.restarts(), 2);

  Supervisor none(0);
  const Verdict verdict = none.judge({.status = 1, .step = 1});
  EXPECT_EQ(verdict.kind, Kind::kGiveUp);
  EXPECT_EQ(verdict.why, "");
}

TEST(Supervisor, ThePauseDoublesUpToAMinute) {
  Supervisor supervisor(100);
  std::vector<double> pauses;
  for (int step = 0; step < 9; ++step)
    pauses.push_back(supervisor.judge({.status = 1, .step = step}).pause_seconds);
  EXPECT_EQ(pauses, (std::vector<double>{1, 2, 4, 8, 16, 32, 60, 60, 60}));
  EXPECT_EQ(pause_before(1000000), 60);
}

}  // namespace
}  // namespace longspan::launcher
