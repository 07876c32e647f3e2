/// Settings of a Slurm job; names, units and help stand once in launcher/options.cpp. What the
/// batch script makes of them: batch_script.hpp.
#pragma once

#include <string>

namespace longspan::slurm {

/// What starts the ranks inside the job.
enum class Starter { kAuto, kSrun, kMpirun };
/// What a run that is not done yet does when its job ends.
enum class Continue { kRequeue, kChain, kNone };
/// Whether a rank and its threads stay on their cores.
enum class Binding { kCores, kNone };

struct SlurmConfig {
  int nodes = 0;           ///< 0 = ranks of the mesh / ranks_per_node
  int ranks_per_node = 0;  ///< 0 = ranks of the mesh / nodes
  int cpus_per_rank = 0;   ///< 0 = run.threads, or what the site gives
  int gpus_per_rank = 0;
  Binding binding = Binding::kCores;
  std::string memory;  ///< of a node, as sbatch --mem takes it; empty = what the site gives
  std::string time;    ///< limit of a job, as sbatch --time takes it; empty = the partition's
  std::string partition, account, qos, constraint, reservation;
  std::string array;        ///< "1-8%2"; empty = one run
  std::string dependency;   ///< "afterok:123"
  std::string extra;        ///< further options of sbatch, as they are
  std::string modules;      ///< names for `module load`, separated by spaces
  std::string environment;  ///< NAME=VALUE, separated by spaces; values may stand in quotes
  Starter starter = Starter::kAuto;
  Continue continuation = Continue::kRequeue;
  int max_restarts = 100;  ///< of a run, however its jobs ended
  int signal_margin = 60;  ///< seconds between the last save's expected end and the time limit
};

}  // namespace longspan::slurm
