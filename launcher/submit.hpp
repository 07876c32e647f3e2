/// Between a run's configuration and its Slurm job: what submit.cpp and submit_after.cpp share, and
/// what tests look at.
#pragma once

#include <cstdint>
#include <string>

#include "launcher/run_config.hpp"
#include "parallel/error.hpp"
#include "slurm/batch_script.hpp"

namespace longspan::launcher {

/// How long the longest of a run's last steps and saves took; 0 = not known.
struct MeasuredTimes {
  double step_seconds = 0, save_seconds = 0;
};
/// From the ends of metrics.jsonl and log.txt of a run that has run before.
MeasuredTimes measured_times(const std::string& run_directory);

/// Fills in slurm.nodes and slurm.ranks-per-node where they are 0. Throws Error (usage) with the
/// whole equation if nodes * ranks per node are not the ranks of the mesh. Pure.
slurm::SlurmConfig resolve_nodes(const RunConfig& config);

/// All that the script is made of. Reads the run directory for the times; writes nothing. Throws
/// Error (usage).
slurm::BatchJob batch_job(const RunConfig& config, const std::string& program,
                          const std::string& submitted_from);

/// Step of the newest checkpoint of a run, from its name; 0 = none.
std::int64_t newest_step(const std::string& run_directory);

/// `submit --after STATUS`, called by the batch script when the ranks have ended: whether the run
/// goes on, written into its history and carried out.
ExitStatus continue_run(const RunConfig& config, int status);

}  // namespace longspan::launcher
