/// Failures against checkpoints: the closed form against Daly's, the run that is played failure by
/// failure against the closed form, the best interval against all others.
#include "launcher/goodput.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace longspan::launcher {
namespace {

TEST(Goodput, IsDalysWhereNothingIsWrittenBehind) {
  const FailureModel m{10000, 2, 30, 0, 120};
  for (const std::int64_t steps : {1, 50, 400, 5000}) {
    const double interval = 2.0 * static_cast<double>(steps);
    EXPECT_NEAR(expected_goodput(m, steps),
                interval / (10000 * std::exp(120 / 10000.0) * std::expm1((interval + 30) / 10000)),
                1e-12);
  }
  // Without failures only saves cost.
  const FailureModel sure{1e15, 2, 30, 0, 120};
  EXPECT_NEAR(expected_goodput(sure, 100), 200.0 / 230, 1e-9);
}

TEST(Goodput, RunsPlayedFailureByFailureAgree) {
  for (const double behind : {0.0, 100.0, 900.0})
    for (const std::int64_t every : {50, 200, 1000}) {
      const FailureModel m{3000, 1, 10, behind, 60};
      // Some 10000 failures: their mean is known to about 1 %.
      const SimulatedRun run =
          simulate_run(m, every, static_cast<std::int64_t>(3e7 * expected_goodput(m, every)), 3);
      EXPECT_GT(run.failures, 8000);
      EXPECT_NEAR(run.goodput, expected_goodput(m, every), 0.04 * run.goodput)
          << behind << " " << every;
    }
}

TEST(Goodput, TheBestIntervalIsBetterThanAllOthers) {
  for (const double blocked : {0.01, 5.0, 300.0})
    for (const double behind : {0.0, 50.0})
      for (const double mtbf : {500.0, 2e4}) {
        const FailureModel m{mtbf, 3, blocked, behind, 30};
        const std::int64_t best = best_interval(m);
        double most = 0;
        for (std::int64_t steps = 1; steps < 20000; ++steps)
          most = std::max(most, expected_goodput(m, steps));
        EXPECT_DOUBLE_EQ(expected_goodput(m, best), most) << blocked << " " << behind;
      }
}

TEST(Goodput, YoungAndDalyAreCloseWhereSavesAreShort) {
  const FailureModel m{1e5, 0.01, 20, 0, 60};
  const double best = 0.01 * static_cast<double>(best_interval(m));
  EXPECT_NEAR(young_interval(m), 2000, 1e-9);
  EXPECT_NEAR(young_interval(m), best, 0.02 * best);
  EXPECT_NEAR(daly_interval(m), best, 0.001 * best);
  // Where a save takes long, Daly's is still good and Young's is not.
  const FailureModel slow{1000, 0.01, 400, 0, 60};
  const double longest = 0.01 * static_cast<double>(best_interval(slow));
  EXPECT_NEAR(daly_interval(slow), longest, 0.02 * longest);
  EXPECT_GT(young_interval(slow), 1.2 * longest);
}

TEST(Goodput, ARunIsAFunctionOfItsSeedAndLosesWhatWasNotSafe) {
  const FailureModel m{500, 1, 1, 20, 10};
  const SimulatedRun run = simulate_run(m, 30, 20000, 1);
  EXPECT_EQ(run.seconds, simulate_run(m, 30, 20000, 1).seconds);
  EXPECT_NE(run.seconds, simulate_run(m, 30, 20000, 2).seconds);
  // Half an interval and what is being written, on average.
  const double lost = static_cast<double>(run.steps_lost) / static_cast<double>(run.failures);
  EXPECT_NEAR(lost, 15 + 20, 8);
  // Without saves between, a run longer than its luck never ends.
  EXPECT_EQ(simulate_run(m, 100000, 100000, 1, 1000).goodput, 0);
  // No failure in a short run: its steps, its save.
  EXPECT_NEAR(simulate_run({1e12, 1, 5, 7, 10}, 100, 50, 1).seconds, 50 + 5 + 7, 1e-9);
}

}  // namespace
}  // namespace longspan::launcher
