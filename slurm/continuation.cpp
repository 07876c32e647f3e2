#include "slurm/continuation.hpp"

#include <fmt/format.h>

#include <csignal>

namespace longspan::slurm {
namespace {

constexpr int kDone = 0, kUsage = 2, kDamaged = 3, kSaved = 75;

std::string where(std::int64_t step) {
  return step == 0 ? "before its first checkpoint" : fmt::format("at step {}", step);
}

}  // namespace

Verdict judge(const JobEnd& end, const SlurmConfig& config) {
  using What = Verdict::What;
  if (end.status == kDone) return {What::kDone, "the run is done"};
  if (end.status == kUsage)
    return {What::kStop, "the configuration is wrong (status 2): correct it and submit again"};
  if (end.status == kDamaged)
    return {What::kStop, "a file is damaged or does not fit (status 3): see the message above"};
  if (end.stop_requested) return {What::kStop, "the run was asked to stop"};
  if (end.cancelled) return {What::kStop, "the job was cancelled: submit goes on with the run"};

  // SIGUSR1 is the warning, and ends ranks that are not yet listening.
  const bool on_purpose = end.status == kSaved || end.status == 128 + SIGUSR1;
  if (on_purpose && end.previous_end && *end.previous_end == end.step)
    return {What::kStop,
            fmt::format("two jobs in a row ended {}: no progress; a longer slurm.time, or a "
                        "shorter step or slurm.signal-margin, is needed",
                        where(end.step))};
  if (!on_purpose && end.step <= end.started)
    return {What::kStop,
            fmt::format("the ranks failed with status {}, and there is no newer checkpoint than "
                        "when the job began ({}): a restart would fail alike",
                        end.status, where(end.step))};
  if (config.continuation == Continue::kNone)
    return {What::kStop, fmt::format("the run stands {} and slurm.continue=none: submit goes on "
                                     "with it",
                                     where(end.step))};
  if (end.restarts >= config.max_restarts)
    return {What::kStop, fmt::format("{} restarts are slurm.max-restarts: submit goes on with the "
                                     "run",
                                     end.restarts)};
  return {What::kGoOn, on_purpose ? fmt::format("saved {}", where(end.step))
                                  : fmt::format("the ranks failed with status {} {}", end.status,
                                                where(end.step))};
}

}  // namespace longspan::slurm
