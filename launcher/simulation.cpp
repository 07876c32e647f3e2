#include "launcher/simulation.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "launcher/simulation_engine.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

/// With fewer, the first, a middle and the last cannot be told apart.
constexpr int kLeastMicroBatches = 3;

void check(const Plan& plan, const SimulationOptions& o) {
  if (!(o.network_factor >= 1e-3 && o.network_factor <= 1e3))
    fail_usage("plan: --network-factor {}: it must be from 0.001 to 1000", o.network_factor);
  if (o.network_factor != 1 && plan.placement.nodes() == 1)
    fail_usage(
        "plan: --network-factor {}: all {} ranks are on one node, nothing goes over the network: "
        "give more --nodes or fewer --ranks-per-node",
        o.network_factor, plan.placement.ranks);
  if (!(o.jitter >= 0 && o.jitter <= 1))
    fail_usage("plan: --jitter {}: it must be from 0 to 1", o.jitter);
  if (o.steps < 1 || o.steps > 100000)
    fail_usage("plan: --steps {}: it must be from 1 to 100000", o.steps);
  for (const auto& [rank, factor] : o.stragglers) {
    if (rank < 0 || rank >= plan.placement.ranks)
      fail_usage("plan: --straggler {}:{}: there are ranks 0 to {}", rank, factor,
                 plan.placement.ranks - 1);
    if (!(factor >= 0.1 && factor <= 1000))
      fail_usage("plan: --straggler {}:{}: a rank is from 0.1 to 1000 times as slow", rank, factor);
  }
}

/// The program with the most detail that stays below the limit.
StepProgram fitting_program(const Plan& plan, const StepPieces& pieces, const MeshShape& mesh,
                            ProgramOptions& options, std::int64_t most) {
  const auto too_many = [&](const StepProgram& program) {
    return static_cast<std::int64_t>(program.ops.size()) * plan.placement.ranks > most;
  };
  options.micro_batches = pieces.accumulation;
  const int fewest = std::min(pieces.accumulation, kLeastMicroBatches);
  StepProgram program =
      step_program(pieces, plan.keep, mesh,
                   {fewest, 1, options.tied, options.small_latencies, options.data_seconds});
  if (pieces.accumulation > fewest) {
    const double times = static_cast<double>(pieces.accumulation) / fewest;
    if (static_cast<double>(program.ops.size()) * times * plan.placement.ranks >
        static_cast<double>(most)) {
      options.micro_batches = fewest;
    } else {
      program = step_program(pieces, plan.keep, mesh, options);
    }
  }
  while (too_many(program) && options.together < mesh.context - 1) {
    options.together *= 2;
    program = step_program(pieces, plan.keep, mesh, options);
  }
  return program;
}

}  // namespace

double SimulationResult::mean() const {
  return std::accumulate(step_seconds.begin(), step_seconds.end(), 0.0) /
         static_cast<double>(step_seconds.size());
}

double SimulationResult::percentile(double share) const {
  std::vector<double> sorted = step_seconds;
  std::sort(sorted.begin(), sorted.end());
  const double rank = std::ceil(share * static_cast<double>(sorted.size()));
  return sorted[static_cast<std::size_t>(std::max(rank, 1.0)) - 1];
}

double SimulationResult::slowest_share() const {
  return std::max(0.0, slowest_compute - mean_compute) / mean();  // rounding
}

SimulationResult simulate(const Plan& plan, const MachineDescription& machine,
                          const SimulationOptions& options) {
  check(plan, options);
  const RunConfig& c = plan.config;
  const MeshShape mesh{c.mesh.data, c.mesh.context, c.mesh.tensor};
  MachineDescription rank =
      machine.for_rank(plan.placement.ranks_on_node(), plan.config.run.threads);
  rank.between.bandwidth *= options.network_factor;
  const StepPieces pieces =
      step_pieces(c, rank, plan.placement, mesh, plan.share,
                  context_traffic(c, mesh, plan.scheme.scheme, plan.scheme.inner));
  ProgramOptions how;
  how.tied = c.model.tie_embeddings;
  how.small_latencies = kSmallReductions * std::ceil(std::log2(plan.placement.ranks));
  how.data_seconds = plan.seconds.data;
  const StepProgram program = fitting_program(plan, pieces, mesh, how, options.most_operations);

  SimulationResult result;
  result.micro_batches = program.micro_batches;
  result.hops_together = how.together;
  result.operations = static_cast<std::int64_t>(program.ops.size()) * plan.placement.ranks;
  std::vector<double> slower(static_cast<std::size_t>(plan.placement.ranks), 1.0);
  for (const auto& [straggler, factor] : options.stragglers)
    slower[static_cast<std::size_t>(straggler)] = factor;
  Engine engine(program, pieces, rank, plan.placement, options.contention, std::move(slower));
  std::vector<double> computed(static_cast<std::size_t>(plan.placement.ranks), 0.0);
  const double left_out = pieces.accumulation - program.micro_batches;
  for (int step = 0; step < options.steps; ++step) {
    const auto ranks = engine.run(derive_key(options.seed, static_cast<std::uint64_t>(step)),
                                  options.jitter, left_out);
    double end = 0;
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      end = std::max(end, ranks[r].end);
      computed[r] += ranks[r].computed / options.steps;
      const double weight = 1.0 / (static_cast<double>(ranks.size()) * options.steps);
      result.exposed.context += weight * ranks[r].waited_context();
      result.exposed.tensor += weight * ranks[r].waited_for(Channel::kTensor);
      result.exposed.gradients += weight * ranks[r].waited_for(Channel::kGradients);
      result.exposed.coordination += weight * ranks[r].waited_for(Channel::kWorld);
    }
    result.step_seconds.push_back(end);
  }
  const auto slowest = std::max_element(computed.begin(), computed.end());
  result.slowest_rank = static_cast<int>(slowest - computed.begin());
  result.slowest_compute = *slowest;
  result.mean_compute =
      std::accumulate(computed.begin(), computed.end(), 0.0) / static_cast<double>(computed.size());
  return result;
}

}  // namespace longspan::launcher
