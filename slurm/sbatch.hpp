/// The commands of Slurm that longspan uses, each as one function. Errors are one readable line
/// with the way out; nothing throws.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "slurm/process.hpp"

namespace longspan::slurm {

struct Submission {
  std::string job;    ///< id; empty = refused
  std::string error;  ///< why, one line
};

/// Submits the text of a script by `sbatch --parsable` with `options` in front of those in the
/// text. Inside a job the job's own SLURM_ variables are kept from it.
Submission submit_script(const std::string& script, const std::vector<std::string>& options = {});

/// What sbatch said, as one line with the remedy. Pure.
std::string sbatch_error(const ProcessOutcome& outcome);

/// The running job begins again: `job` is its id, of an array's element ARRAY_INDEX. Returns why
/// not; empty = it will.
std::string requeue_job(const std::string& job);

/// Submits the script of the job that this process runs in once more, to begin when that has ended;
/// `option`: one more for sbatch, or empty.
Submission submit_successor(const std::string& job, const std::string& option = "");

/// What `scontrol show job` says.
struct JobFacts {
  std::string state;  ///< "PENDING", "RUNNING", "COMPLETING"...; empty if it cannot be told
  std::int64_t run_seconds = 0;
  std::optional<std::int64_t> limit_seconds = {};
  /// Slurm ends a job that is COMPLETING while its script still runs: its time is up, or somebody
  /// has cancelled it; Slurm 22.05 does not say which of them. (One that was preempted is PENDING.)
  bool cancelled() const;
};
JobFacts job_facts(const std::string& job);

}  // namespace longspan::slurm
