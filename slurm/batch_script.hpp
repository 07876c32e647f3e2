/// From settings to the text of a batch script. Pure: the same input gives the same bytes, nothing
/// is looked up. Every value in it is quoted (quoting.hpp). Who submits it: sbatch.hpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "slurm/config.hpp"

namespace longspan::slurm {

/// How long before its end Slurm tells a job so: one step, one save, and a margin.
struct SignalLead {
  std::int64_t seconds = 0;  ///< all three, rounded up
  std::string reason;        ///< one line, for people: where the number comes from
};

/// `step_seconds`, `save_seconds`: the longest ones that the run has measured; 0 = not measured, 60
/// s are assumed for each. At most half of `limit_seconds` (0 = not known), so that a job has time
/// to get on, and at most what sbatch takes (65535 s).
SignalLead signal_lead(double step_seconds, double save_seconds, int margin_seconds,
                       std::int64_t limit_seconds);

struct BatchJob {
  SlurmConfig slurm;           ///< nodes and ranks_per_node are not 0 here
  std::string name;            ///< of the run
  std::string program;         ///< path of longspan
  std::string submitted_from;  ///< folder from which relative paths of the settings count
  std::string run_directory;   ///< absolute
  /// "--section.key", "value", ...: what `train` is told, without run.directory.
  std::vector<std::string> settings;
  SignalLead lead;
  int threads_per_rank = 0;  ///< run.threads; 0 = not set
};

/// The whole script. It starts the ranks, passes the warning signal on to them, waits for their
/// end, and lets `longspan submit --after STATUS` decide how the run goes on.
///
/// starter = auto is decided in the job, not by who submits: login and compute nodes need not have
/// the same software, and the script of a dry run must not depend on where it was made. It is srun
/// where `srun --mpi=list` offers pmix, else mpirun.
///
/// An array's element i is a run of its own: run.seed = i in <run directory>/<i>.
std::string batch_script(const BatchJob& job);

/// Where Slurm writes the job's output: sbatch's pattern (%j, or %A_%a of an array). In the run
/// directory; an #SBATCH line cannot name a folder with a line break or a backslash in it: then a
/// file in the folder it is submitted from.
std::string log_pattern(const BatchJob& job);
/// That file of job `id`; of an array with %a, since it has many.
std::string log_path(const BatchJob& job, const std::string& id);

}  // namespace longspan::slurm
