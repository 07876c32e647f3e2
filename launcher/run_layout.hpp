/// What a configuration comes to on a number of ranks: which mesh, how many micro-batches a step,
/// which scheme, and the part of a micro-batch that one rank works on. Pure: training_run.cpp and
/// plan.cpp take the same functions, so that what is planned is what is run.
#pragma once

#include <cstdint>

#include "launcher/run_config.hpp"
#include "model/attention_choice.hpp"
#include "model/rank_share.hpp"
#include "parallel/mesh.hpp"

namespace longspan::launcher {

model::AttentionMask mask_of(const model::AttentionConfig& attention);

/// The heads of one of `tensor` ranks. `config` is resolved, here and below.
model::AttentionGeometry geometry_of(const RunConfig& config, int tensor);

/// Micro-batches of a step. train.global-batch is set. Throws Error (usage) if it cannot be split
/// so.
int accumulation_of(const RunConfig& config, const MeshShape& mesh);

/// Tokens of a sequence that every context rank holds, padding included.
std::int64_t tokens_of_rank(const RunConfig& config, const MeshShape& mesh);

/// attention.scheme resolved; `context_per_node`: ranks of a context group that share a node.
model::SchemeChoice scheme_of(const RunConfig& config, const MeshShape& mesh, int context_per_node);

/// Whether saves between the steps run in the background, from a copy.
bool overlaps_saves(const RunConfig& config);

/// optimizer.shard as it is carried out: one rank has nothing to share.
model::OptimizerShard shard_of(const RunConfig& config, const MeshShape& mesh);

model::RankShare rank_share_of(const RunConfig& config, const MeshShape& mesh,
                               const model::SchemeChoice& scheme);

}  // namespace longspan::launcher
