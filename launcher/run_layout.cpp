#include "launcher/run_layout.hpp"

#include <numeric>

#include "model/flops.hpp"
#include "parallel/context_parallel.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {

model::AttentionMask mask_of(const model::AttentionConfig& attention) {
  return {attention.mask == model::MaskKind::kCausal, attention.window};
}

model::AttentionGeometry geometry_of(const RunConfig& config, int tensor) {
  const model::ModelConfig part = model::part_of_model(config.model, tensor);
  return {part.heads, part.kv_heads, part.head_size, mask_of(config.attention), 1.0f};
}

int accumulation_of(const RunConfig& config, const MeshShape& mesh) {
  const std::int64_t at_once = config.train.micro_batch * mesh.data;
  if (config.train.global_batch % at_once != 0)
    fail_usage(
        "train.global-batch={} is not a multiple of train.micro-batch={} * mesh.data={}: set it to "
        "{}",
        config.train.global_batch, config.train.micro_batch, mesh.data,
        (config.train.global_batch / at_once + 1) * at_once);
  return static_cast<int>(config.train.global_batch / at_once);
}

std::int64_t tokens_of_rank(const RunConfig& config, const MeshShape& mesh) {
  // As sequence_positions() (parallel/context_parallel.hpp), without making the positions.
  const model::AttentionMask mask = mask_of(config.attention);
  const std::int64_t length = config.data.sequence_length, ranks = mesh.context;
  const auto chunk_of = [&](std::int64_t chunks, std::int64_t multiple) {
    const std::int64_t chunk = (length + chunks - 1) / chunks;
    return (chunk + multiple - 1) / multiple * multiple;
  };
  if (ranks == 1 || layout_for(mask.causal, mask.window) == SequenceLayout::kContiguous)
    return chunk_of(ranks, mesh.tensor);
  return 2 * chunk_of(2 * ranks, mesh.tensor / std::gcd(mesh.tensor, 2));
}

model::SchemeChoice scheme_of(const RunConfig& config, const MeshShape& mesh,
                              int context_per_node) {
  return model::choose_scheme(config.attention.scheme, geometry_of(config, mesh.tensor),
                              {config.train.micro_batch, config.data.sequence_length, mesh.context},
                              context_per_node);
}

bool overlaps_saves(const RunConfig& config) {
  // The last save is waited for anyway.
  return config.checkpoint.overlap && config.checkpoint.every > 0 &&
         config.checkpoint.every < config.train.steps;
}

model::OptimizerShard shard_of(const RunConfig& config, const MeshShape& mesh) {
  return mesh.data * mesh.context > 1 ? config.optimizer.shard : model::OptimizerShard::kNone;
}

model::RankShare rank_share_of(const RunConfig& config, const MeshShape& mesh,
                               const model::SchemeChoice& scheme) {
  model::RankShare share;
  share.sequences = config.train.micro_batch;
  share.tokens = tokens_of_rank(config, mesh);
  share.context = mesh.context;
  share.scheme = scheme.scheme;
  share.mask = mask_of(config.attention);
  share.inner = scheme.inner;
  share.tensor = mesh.tensor;
  share.shard = shard_of(config, mesh);
  share.owners = mesh.data * mesh.context;
  // Weights and two moments, of which each rank writes its share.
  if (overlaps_saves(config))
    share.staging = (12 * model::parameter_count(config.model) + mesh.size() - 1) / mesh.size();
  return share;
}

}  // namespace longspan::launcher
