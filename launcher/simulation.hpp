/// One training step played event by event on thousands of ranks: what formulas cannot say, such as
/// jitter, a slow rank, ranks that share a network adapter, and rings that cross nodes only here
/// and there. Every rank carries out the operations of the program in its order; a message or a
/// collective begins when all who take part have posted it and those before it in its group are
/// over, as on the communication threads of parallel/process_group.hpp. Same inputs, same result.
/// Pure. Read next: simulation_program.hpp, the operations; goodput.hpp, failures.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "launcher/plan.hpp"

namespace longspan::launcher {

struct SimulationOptions {
  double network_factor = 1;  ///< times the bandwidth between nodes
  /// Relative standard deviation of the compute of one rank in one layer and pass, log-normal with
  /// mean 1; a function of (seed, step, rank, layer) alone.
  double jitter = 0;
  std::vector<std::pair<int, double>> stragglers;  ///< rank, times slower
  int steps = 1;                                   ///< independent steps
  std::uint64_t seed = 1;
  /// Messages between nodes share the adapters (links.adapters-per-node), all axes together, and
  /// only hops that leave a node take the network. Without: every group has the link of the closed
  /// formulas for itself.
  bool contention = true;
  /// Operations of a step over all ranks; beyond it equal micro-batches in the middle are played
  /// once, then hops of a ring together.
  std::int64_t most_operations = 16'000'000;
};

/// What a rank waited for communication, mean over all ranks.
struct SimulatedExposure {
  double context = 0, tensor = 0, gradients = 0, coordination = 0;
};

struct SimulationResult {
  std::vector<double> step_seconds;  ///< [steps], from the start to the end of the last rank
  SimulatedExposure exposed;         ///< mean over steps
  int slowest_rank = 0;              ///< the one that computed longest, over all steps
  double slowest_compute = 0, mean_compute = 0;  ///< seconds of a step
  std::int64_t operations = 0;                   ///< of one step over all ranks, as played
  int micro_batches = 0;                         ///< played, of plan's accumulation
  int hops_together = 1;

  double mean() const;
  /// Nearest rank: the smallest step time that at least `share` of the steps do not exceed.
  double percentile(double share) const;
  /// Of the step: what the slowest rank computes beyond the mean.
  double slowest_share() const;
};

/// Throws Error (usage) if an option is out of its range, a straggler is no rank, or the network
/// is changed where all ranks are on one node.
SimulationResult simulate(const Plan& plan, const MachineDescription& machine,
                          const SimulationOptions& options);

}  // namespace longspan::launcher
