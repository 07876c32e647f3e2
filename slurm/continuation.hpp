/// Whether a run goes on when a job of it has ended. Pure; launcher/submit_after.cpp asks the
/// questions and carries the answer out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "slurm/config.hpp"

namespace longspan::slurm {

struct JobEnd {
  int status = 0;            ///< of the ranks; 128 + n: signal n
  std::int64_t step = 0;     ///< of the newest checkpoint now; 0 = none
  std::int64_t started = 0;  ///< the same when this job began, as far as is known
  std::optional<std::int64_t> previous_end = {};  ///< the same at the end of the job before this
  int restarts = 0;                               ///< of the run since it was submitted
  bool stop_requested = false;                    ///< the file `stop` in the run directory
  bool cancelled = false;                         ///< by scancel
};

struct Verdict {
  enum class What { kDone, kGoOn, kStop } what = What::kStop;
  std::string why;  ///< one line, for people
};

/// An end on purpose (75) goes on unless the job before it ended at the same step, a crash only if
/// there is a newer checkpoint than when the job began; both at most max_restarts times. Wrong
/// usage (2), damaged files (3), scancel and the file `stop` end the run for good.
Verdict judge(const JobEnd& end, const SlurmConfig& config);

}  // namespace longspan::slurm
