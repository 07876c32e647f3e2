/// Durations as settings, and when a run has to leave for its time is up.
#include "launcher/deadline.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace longspan::launcher {
namespace {

using namespace std::chrono_literals;

TEST(Duration, EveryFormIsReadAndWhatIsPrintedReadsBack) {
  const std::vector<std::pair<const char*, std::int64_t>> good = {{"0", 0},
                                                                  {"90", 90},
                                                                  {"90s", 90},
                                                                  {"45m", 2700},
                                                                  {"2h", 7200},
                                                                  {"3d", 259200},
                                                                  {"1:30:00", 5400},
                                                                  {"0:00:07", 7},
                                                                  {"48:00:00", 172800},
                                                                  {"2-00:00:00", 172800},
                                                                  {"1-12:00:01", 129601}};
  for (const auto& [text, seconds] : good) {
    const auto parsed = parse_duration(text);
    ASSERT_TRUE(parsed) << text;
    EXPECT_EQ(parsed->seconds, seconds) << text;
    EXPECT_EQ(parse_duration(text_of(*parsed)), parsed) << text_of(*parsed);
  }
  EXPECT_EQ(text_of(Duration{5400}), "1:30:00");
  for (const char* bad : {"", "m", "-5", "1:30", "1:60:00", "1:00:60", "1:0:00", "::", "1:00:00:00",
                          "2-24:00:00", "2-1:00", "45 m", "1.5h", "1h30m", "99999999999999999999",
                          "20000d", "-1:00:00", "1:-1:00", "3x"})
    EXPECT_FALSE(parse_duration(bad)) << bad;
}

TEST(Deadline, LeavesTimeForAStepAndASave) {
  const auto start = Deadline::Clock::now();
  Deadline deadline(start, {100}, std::nullopt);
  EXPECT_FALSE(deadline.reached(start));
  deadline.expect_save(10);
  deadline.note_step(20);
  deadline.note_step(5);  // the longest counts
  // 1.2 * (20 + 10) + 1 = 37 before the end
  EXPECT_FALSE(deadline.reached(start + 62s));
  EXPECT_TRUE(deadline.reached(start + 64s));
  // A measured save replaces the expected one, whichever is longer; one under way comes first.
  deadline.note_save(5);
  EXPECT_FALSE(deadline.reached(start + 68s));
  EXPECT_TRUE(deadline.reached(start + 70s));
  EXPECT_TRUE(deadline.reached(start + 68s, 1));
  EXPECT_EQ(deadline.reason(), "train.time-limit=0:01:40 is near");
}

TEST(Deadline, AJobsEndThatIsMovedCounts) {
  const auto start = Deadline::Clock::now();
  Deadline deadline(start, {100}, std::nullopt);
  deadline.set_job_end(start + 50s);
  EXPECT_TRUE(deadline.reached(start + 50s));
  EXPECT_EQ(deadline.reason().rfind("the job ends at ", 0), 0u) << deadline.reason();
  deadline.set_job_end(start + 5000s);  // somebody has given it more time
  EXPECT_FALSE(deadline.reached(start + 60s));
  EXPECT_TRUE(deadline.reached(start + 100s));
  EXPECT_EQ(deadline.reason(), "train.time-limit=0:01:40 is near");
}

TEST(Deadline, TheEarlierEndCounts) {
  const auto start = Deadline::Clock::now();
  const Deadline none(start, {0}, std::nullopt);
  EXPECT_FALSE(none.reached(start + 100000h));
  EXPECT_EQ(none.reason(), "");
  const Deadline job(start, {100}, start + 50s);
  EXPECT_FALSE(job.reached(start + 48s));
  EXPECT_TRUE(job.reached(start + 50s));
  EXPECT_EQ(job.reason().rfind("the job ends at ", 0), 0U) << job.reason();
  const Deadline limit(start, {100}, start + 500s);
  EXPECT_TRUE(limit.reached(start + 100s));
  EXPECT_EQ(limit.reason(), "train.time-limit=0:01:40 is near");
  const Deadline only_job(start, {0}, start + 500s);
  EXPECT_FALSE(only_job.reached(start + 400s));
  EXPECT_TRUE(only_job.reached(start + 500s));
}

}  // namespace
}  // namespace longspan::launcher
