/// What every layer keeps of its activations between forward and backward, and the choice of it for
/// memory.keep=auto. All functions are pure: the same arguments give the same plan on every rank.
/// Read next: flops.hpp, where the bytes come from; transformer.cpp, which carries the plan out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/config.hpp"
#include "model/rank_share.hpp"

namespace longspan::model {

/// The plan a Transformer trains by: one keep mode per layer, none of them auto.
struct ActivationPlan {
  std::vector<Keep> keep_L;
};

/// memory.keep in every layer. Throws Error for auto, which has to be worked out first.
ActivationPlan uniform_plan(Keep keep, std::int64_t layers);

/// "block in layers 0-8, all in layers 9-11".
std::string to_string(const ActivationPlan& plan);

/// One way to run one layer. Bytes on one rank, seconds of one forward and backward pass.
struct LayerOption {
  Keep keep = Keep::kAll;
  std::int64_t kept_bytes = 0;   ///< in memory from the layer's forward to its backward
  std::int64_t moved_bytes = 0;  ///< in memory while this layer or its successor is at work, else
                                 ///< in a file (memory.offload); the last layer's never move
  std::int64_t work_bytes = 0;   ///< the most beside these while the layer itself is at work
  double extra_seconds = 0;      ///< to compute again what was not kept
};

/// Layers in forward order, each with what it may do, and what is there whatever they do.
struct ActivationChain {
  std::vector<std::vector<LayerOption>> options_L;
  std::int64_t state_bytes = 0;  ///< always there
  std::int64_t loss_bytes = 0;   ///< between forward and backward, beside what all layers keep
  double step_seconds = 0;       ///< forward and backward with nothing computed again
};

/// The most bytes at one time when layer i takes option chosen_L[i]: layer i works while layers 0
/// to i keep what they keep, in forward because the others have not run, in backward because they
/// have finished; the loss while all do.
std::int64_t peak_bytes(const ActivationChain& chain, const std::vector<std::size_t>& chosen_L);

struct ChosenPlan {
  ActivationPlan plan;
  std::int64_t peak_bytes = 0;
  double extra_share = 0;  ///< seconds computed again / step_seconds
};

/// The plan with the fewest extra seconds whose peak is at most `budget_bytes`; nothing if there is
/// none. Exact: a multiple-choice knapsack (notes/long-sequences.md section 8.5) solved layer by
/// layer over the Pareto front of (bytes kept, seconds), without rounding of bytes. Every layer's
/// work is held against the bytes kept at its own moment, so no bound on the largest work has to be
/// enumerated. Equal layers: O(layers^3); ties go to fewer bytes, then to the option listed first.
std::optional<ChosenPlan> cheapest_plan(const ActivationChain& chain, std::int64_t budget_bytes);

/// The smallest budget for which cheapest_plan() finds a plan.
std::int64_t smallest_budget(const ActivationChain& chain);

/// Nominal speed of one rank. Only ratios matter, and they are fixed so that a configuration has
/// the same plan wherever it runs.
struct NominalRates {
  double linear_flops = 100e9;    ///< FLOP/s in matrix products
  double attention_flops = 50e9;  ///< FLOP/s in attention, about half of the former on CPUs
  double link_bytes = 2e9;        ///< bytes/s to another rank
};

/// The chain of a model on one rank: `modes` are the options of every layer, `length` the tokens of
/// a whole sequence. Moved bytes follow memory.offload and cost no seconds: they travel behind the
/// compute.
ActivationChain activation_chain(const ModelConfig& model, const AttentionConfig& attention,
                                 const MemoryConfig& memory, const std::vector<Keep>& modes,
                                 std::int64_t length, const RankShare& share,
                                 const NominalRates& rates = {});

}  // namespace longspan::model
