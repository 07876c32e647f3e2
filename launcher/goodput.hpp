/// Failures against checkpoints: which part of the time on the machine brings a run forward, and
/// how often to save. Failures are exponential; those during a restart count too. After Young 1974,
/// Daly 2006 (Future Generation Computer Systems 22), extended by saves that are written in the
/// background and are safe only then. Pure.
#pragma once

#include <cstdint>

namespace longspan::launcher {

struct FailureModel {
  double mtbf_seconds = 0;     ///< of the whole machine: a node's / nodes
  double step_seconds = 0;     ///< without saves
  double blocked_seconds = 0;  ///< of a save, in which no step is done
  double behind_seconds = 0;   ///< until it is safe, while steps go on; the next save waits for it
  double restart_seconds = 0;  ///< from a failure to the next step
};

/// Useful seconds / all seconds of a long run with a save every `steps` steps. With
/// behind_seconds = 0 it is Daly's eq. 13: interval / (M e^(R/M) (e^((interval + blocked)/M) - 1)).
double expected_goodput(const FailureModel& model, std::int64_t steps);

/// The number of steps with the best goodput, exact.
std::int64_t best_interval(const FailureModel& model);

/// Seconds between saves: sqrt(2 d M), and Daly's eq. 37 with two more terms; d = blocked_seconds.
double young_interval(const FailureModel& model);
double daly_interval(const FailureModel& model);

struct SimulatedRun {
  double seconds = 0;
  std::int64_t failures = 0;
  std::int64_t steps_lost = 0;  ///< done and done again
  double goodput = 0;           ///< steps * step_seconds / seconds
};

/// One run of `total_steps` with a save every `steps`, failure by failure; the last step's save is
/// waited for. Gives up (goodput 0) after `most_failures`. Same seed, same run.
SimulatedRun simulate_run(const FailureModel& model, std::int64_t steps, std::int64_t total_steps,
                          std::uint64_t seed, std::int64_t most_failures = 1'000'000);

}  // namespace longspan::launcher
