/// memory.keep and memory.budget of a run: what every layer keeps, worked out before the model is
/// built. Read next: model/activation_plan.hpp, which chooses.
#pragma once

#include <cstdint>
#include <string>

#include "launcher/run_config.hpp"
#include "model/activation_plan.hpp"
#include "parallel/communicator.hpp"

namespace longspan::launcher {

/// What bounds the memory of this rank.
struct MemoryLimit {
  std::int64_t bytes = 0;
  std::string source;  ///< "memory.budget", or where the number comes from and how it is shared
};

/// memory.budget; when 0, 80 % of what the node has (its memory, or the limit of this process's
/// control group if that is less) / the ranks on the node. The least over all ranks. Collective.
MemoryLimit memory_limit(std::int64_t budget, const Communicator& world);

/// Bytes this process and the others of its control group may use: the node's memory or the control
/// group's limit, whichever is less.
MemoryLimit node_memory();

struct MemoryPlan {
  model::ActivationPlan plan;
  std::string reason;  ///< what was chosen and why, one line; empty unless memory.keep=auto
};

/// The plan of a resolved configuration on a rank with this share of the work. Pure. Throws Error
/// (usage) when auto finds nothing within the limit, or when memory.budget is set and the fixed
/// memory.keep needs more: with the smallest budget that would do and what else would.
MemoryPlan plan_memory(const RunConfig& config, const model::RankShare& share,
                       const MemoryLimit& limit);

}  // namespace longspan::launcher
