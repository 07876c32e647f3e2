/// Carrying a study out: its runs one after the other on this machine (or in the allocation around
/// it), each by `longspan launch`, or as Slurm jobs. What has a result is not run again.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "launcher/launch_ranks.hpp"
#include "launcher/study_files.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {

/// Told how the study goes on, a line at a time.
using Say = std::function<void(const std::string&)>;

/// How far a study has come.
struct StudyState {
  std::vector<std::vector<std::optional<RunResult>>> results;
  std::vector<std::vector<Unfinished>> unfinished;
  bool interrupted = false;  ///< the user has ended it
  std::vector<PointResult> rows(const StudyFolder& folder) const;
};

/// Runs what has no result: the first repeats of all points, then the second ones, ..., so that
/// what changes on the machine meanwhile meets all points alike. A run that fails has a result that
/// says so. SIGINT, SIGTERM, SIGHUP and SIGUSR1 end the study after they have ended the run; that
/// one begins anew next time. The tables of the folder are made anew after every run.
StudyState run_study(const StudyFolder& folder, const Say& say);

/// Submits a job for each run that has neither a result nor a job, and takes the results of those
/// that are over. Throws Error if Slurm refuses a job: those before it stay submitted.
StudyState submit_study(const StudyFolder& folder, const Say& say);

/// What `longspan launch` is told for a run.
std::vector<std::string> launch_arguments(const StudyFolder& folder, std::size_t point,
                                          std::int64_t repeat);

/// Runs `words` (words[0] is a path) with its streams in files. The stop signals reach it as
/// SIGTERM, the second SIGINT as such; it gets SIGTERM if this process is killed. Returns its exit
/// status, 128 + n if signal n ended it. Throws Error if it cannot be started.
int run_child(const std::vector<std::string>& words, const std::string& out,
              const std::string& errors, const StopSignals& signals);

}  // namespace longspan::launcher
