/// The pieces of a step on one rank: seconds of each operation and bytes of each exchange. The
/// formulas (step_time.hpp) add them up, the simulation (simulation.hpp) plays them. Pure.
#pragma once

#include <cstdint>

#include "launcher/machine_file.hpp"
#include "launcher/run_layout.hpp"

namespace longspan::launcher {

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

/// A layer's attention traffic on the rank that sends most: linear in the sequences, so that it is
/// worked out once for one sequence.
struct ContextTraffic {
  model::AttentionTraffic total;  ///< of one sequence
  model::AttentionTraffic heads;  ///< hybrid: the part that is exchanged inside the inner group
  double busiest = 1;             ///< heads of the busiest rank / an even share
};
ContextTraffic context_traffic(const RunConfig& config, const MeshShape& mesh,
                               model::AttentionSchemeKind scheme, int inner);

/// Seconds of one layer's products, forward, of a micro-batch; backward is twice that.
struct LayerProducts {
  double qkv = 0, output = 0, up = 0, down = 0;
  double all() const { return qkv + output + up + down; }
  double again() const { return qkv + output + up; }  ///< the way out only makes the next input
};

struct StepPieces {
  int accumulation = 1;  ///< micro-batches of a step
  std::int64_t layers = 0;
  int context = 1, inner = 1, tensor = 1, owners = 1;  ///< as in RankShare
  model::AttentionSchemeKind scheme = model::AttentionSchemeKind::kRing;
  model::OptimizerShard shard = model::OptimizerShard::kNone;
  bool windowed = false;

  // Seconds of a layer and micro-batch.
  LayerProducts products;
  double pointwise_forward = 0, pointwise_backward = 0;
  double activation = 0;  ///< of the MLP and two norms, forward: made again with keep=all
  double attention_forward = 0, attention_backward = 0;
  // Of a micro-batch, of a step.
  double embedding = 0, loss_product = 0, loss_pointwise = 0, optimizer = 0;
  double loss() const { return loss_product + loss_pointwise; }

  // Bytes a rank sends, a layer and micro-batch: in all, and of that inside hybrid's inner groups.
  double context_forward = 0, context_backward = 0, context_again = 0;
  double heads_forward = 0, heads_backward = 0;
  double tensor_unit = 0, tensor_loss = 0;  ///< of one gather or sum; of the loss' numbers
  // Elements of the units that are reduced and gathered on their own.
  double embedding_elements = 0, layer_elements = 0, end_elements = 0;
  double parameters() const {
    return embedding_elements + static_cast<double>(layers) * layer_elements + end_elements;
  }

  MachineLink context_link, heads_link, tensor_link, gradient_link, world_link;
};

/// Without seconds and links: what needs no machine to be known.
StepPieces step_exchanges(const RunConfig& config, const MeshShape& mesh,
                          const model::RankShare& share, const ContextTraffic& traffic);

StepPieces step_pieces(const RunConfig& config, const MachineDescription& rank,
                       const Placement& placement, const MeshShape& mesh,
                       const model::RankShare& share, const ContextTraffic& traffic);

}  // namespace longspan::launcher
