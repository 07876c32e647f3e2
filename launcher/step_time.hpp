/// Where the time and the bytes of one optimizer step go, by formula. Pure, and cheap: the search
/// calls it tens of thousands of times. The ring's overlap is that of Liu et al. 2023,
/// `max(compute, wire)` a hop. Read next: plan.hpp.
#pragma once

#include <cstdint>
#include <vector>

#include "launcher/machine_file.hpp"
#include "launcher/step_pieces.hpp"
#include "model/activation_plan.hpp"

namespace longspan::launcher {

/// Layers by what they keep.
struct KeepCounts {
  std::int64_t all = 0, attention = 0, block = 0;
};
KeepCounts count_keeps(const std::vector<model::Keep>& keep_L);

/// Seconds of one step on the slowest rank. Communication is what nothing hides, and what it takes
/// from the cores.
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

/// Small reductions over all ranks in a step.
constexpr int kSmallReductions = 8;

/// One checkpoint on one rank: seconds that keep the steps waiting, and those of the writing behind
/// them.
struct SaveSeconds {
  double blocked = 0, behind = 0;
};
SaveSeconds save_seconds(const RunConfig& config, const MachineDescription& rank,
                         const Placement& placement);

/// What a rank sends: of step_pieces() or of step_exchanges() alike.
StepBytes step_bytes(const StepPieces& pieces, const KeepCounts& keeps);

/// Of the whole arrays that tensor ranks gather and sum: a rank sends (T-1)/T of them, and touches
/// them all.
double tensor_array_bytes(const StepBytes& bytes, int tensor);

/// The same of heads that are exchanged for tokens, which are packed and unpacked whole; keys,
/// values and their gradients in a ring or with allgather: what a rank sends.
double context_array_bytes(const StepPieces& pieces, const StepBytes& bytes);

/// What exchanges take from the cores that compute, hidden or not.
struct CopyingSeconds {
  double context = 0, tensor = 0, gradients = 0;
  double all() const { return context + tensor + gradients; }
};
CopyingSeconds copying_seconds(const StepPieces& pieces, const StepBytes& bytes);

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
