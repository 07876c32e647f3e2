/// Where the time and the bytes of one optimizer step go, by formula. Pure, and cheap: the search
/// calls it tens of thousands of times. The ring's overlap is that of Liu et al. 2023,
/// `max(compute, wire)` a hop. Read next: plan.hpp.
#pragma once

#include <cstdint>

#include "launcher/machine_file.hpp"
#include "launcher/run_layout.hpp"
#include "model/activation_plan.hpp"

namespace longspan::launcher {

/// Layers by what they keep.
struct KeepCounts {
  std::int64_t all = 0, attention = 0, block = 0;
};
KeepCounts count_keeps(const model::ActivationPlan& plan);

/// Where ranks sit: node k has ranks [k * ranks_per_node, (k + 1) * ranks_per_node).
struct Placement {
  int ranks = 1, ranks_per_node = 1;
  int nodes() const { return (ranks + ranks_per_node - 1) / ranks_per_node; }
  int ranks_on_node() const { return ranks < ranks_per_node ? ranks : ranks_per_node; }
  /// Whether groups of `size` ranks, `stride` apart, stay inside a node.
  bool inside(int size, int stride) const;
  /// Context ranks of a group on one node, the number that fits all nodes.
  int context_per_node(const MeshShape& mesh) const;
};

/// Seconds of one step on the slowest rank. Communication is what nothing hides.
struct StepSeconds {
  double linear = 0;     ///< products of the layers, forward and backward
  double attention = 0;  ///< forward and backward
  double pointwise = 0;  ///< norms, activations, residuals, positions, embedding
  double recompute = 0;  ///< what was not kept, computed again
  double loss = 0;       ///< the output product and the cross entropy
  double context_exposed = 0, tensor_exposed = 0, gradient_exposed = 0;
  double optimizer = 0;     ///< AdamW and the gradient norm
  double data = 0;          ///< reading that nothing hides
  double checkpoint = 0;    ///< of a save that nothing hides, spread over its steps
  double coordination = 0;  ///< small reductions
  double exposed() const { return context_exposed + tensor_exposed + gradient_exposed; }
  double total() const {
    return linear + attention + pointwise + recompute + loss + exposed() + optimizer + data +
           checkpoint + coordination;
  }
};

/// Bytes one rank sends in a step.
struct StepBytes {
  double context = 0, tensor = 0, gradients = 0;
};

/// A layer's attention traffic on the rank that sends most: linear in the sequences, so that it is
/// worked out once for one sequence.
struct ContextTraffic {
  model::AttentionTraffic total;  ///< of one sequence
  model::AttentionTraffic heads;  ///< hybrid: the part that is exchanged inside the inner group
  double busiest = 1;             ///< heads of the busiest rank / an even share
};
ContextTraffic context_traffic(const RunConfig& config, const MeshShape& mesh,
                               model::AttentionSchemeKind scheme, int inner);

/// What needs no machine to be known. Arguments as for estimate_step().
StepBytes step_bytes(const RunConfig& config, const MeshShape& mesh, const model::RankShare& share,
                     const KeepCounts& keeps, const ContextTraffic& traffic);

struct StepEstimate {
  StepSeconds seconds;
  StepBytes bytes;
};

/// `rank`: a machine's for_rank(). `config` is resolved and its train.global-batch a multiple of
/// micro-batch * data ranks.
StepEstimate estimate_step(const RunConfig& config, const MachineDescription& rank,
                           const Placement& placement, const MeshShape& mesh,
                           const model::RankShare& share, const KeepCounts& keeps,
                           const ContextTraffic& traffic);

}  // namespace longspan::launcher
