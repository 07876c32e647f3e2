#include "launcher/goodput.hpp"

#include <algorithm>
#include <cmath>

#include "parallel/random.hpp"

namespace longspan::launcher {
namespace {

/// Seconds from one save's copy to the next one's.
double period(const FailureModel& m, double work) {
  return std::max(work, m.behind_seconds) + m.blocked_seconds;
}

/// Exponential with mean `mean`; 53 bits.
double exponential(std::uint64_t seed, std::int64_t index, double mean) {
  const PhiloxBlock w = philox(seed, 0, static_cast<std::uint64_t>(index));
  const double u = (static_cast<double>((std::uint64_t{w[0]} << 21) ^ w[1]) + 1.0) * 0x1.0p-53;
  return -mean * std::log(u);
}

}  // namespace

double expected_goodput(const FailureModel& m, std::int64_t steps) {
  // From a restart to the next failure, mean M: save n is safe after restart + first + (n - 1) *
  // period + behind. Its work counts if the failure comes later: a geometric series.
  const double work = static_cast<double>(steps) * m.step_seconds;
  const double first = m.restart_seconds + work + m.blocked_seconds + m.behind_seconds;
  return work / m.mtbf_seconds * std::exp(-first / m.mtbf_seconds) /
         -std::expm1(-period(m, work) / m.mtbf_seconds);
}

std::int64_t best_interval(const FailureModel& m) {
  // One maximum: it rises while saves cost, falls while lost work does.
  std::int64_t low = 1, high = 2;
  while (high < (std::int64_t{1} << 40) &&
         expected_goodput(m, high) > expected_goodput(m, high / 2))
    high *= 2;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (expected_goodput(m, middle) < expected_goodput(m, middle + 1))
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

double young_interval(const FailureModel& m) {
  return std::sqrt(2 * m.blocked_seconds * m.mtbf_seconds);
}

double daly_interval(const FailureModel& m) {
  const double ratio = m.blocked_seconds / (2 * m.mtbf_seconds);
  if (ratio >= 1) return m.mtbf_seconds;
  return young_interval(m) * (1 + std::sqrt(ratio) / 3 + ratio / 9) - m.blocked_seconds;
}

SimulatedRun simulate_run(const FailureModel& m, std::int64_t steps, std::int64_t total_steps,
                          std::uint64_t seed, std::int64_t most_failures) {
  SimulatedRun run;
  std::int64_t done = 0;  // steps that are safe
  bool restarting = false;
  while (true) {
    const double failure = exponential(seed, run.failures, m.mtbf_seconds);
    // From here on seconds since the start or restart.
    double now = restarting ? m.restart_seconds : 0, written = now;
    std::int64_t at = done, reached = done;
    while (at < total_steps && now <= failure) {
      const std::int64_t chunk = std::min(steps, total_steps - at);
      reached = at + std::min(chunk, static_cast<std::int64_t>((failure - now) / m.step_seconds));
      now += static_cast<double>(chunk) * m.step_seconds;
      now = std::max(now, written) + m.blocked_seconds;  // the save before is written first
      written = now + m.behind_seconds;
      at += chunk;
      if (written <= failure) done = at;
    }
    if (done >= total_steps) {
      run.seconds += written;
      break;
    }
    run.seconds += failure;
    run.steps_lost += reached - done;
    restarting = true;
    if (++run.failures >= most_failures) return run;
  }
  run.goodput = static_cast<double>(total_steps) * m.step_seconds / run.seconds;
  return run;
}

}  // namespace longspan::launcher
