#include "model/sharding_memory.hpp"

#include <algorithm>

#include "model/flops.hpp"

namespace longspan::model {

ShardingMemory sharding_memory(const ModelConfig& m, OptimizerShard shard, int owners, int tensor) {
  ModelConfig no_blocks = m;
  no_blocks.layers = 0;
  const std::int64_t count = parameter_count(m, tensor), ends = parameter_count(no_blocks, tensor);
  const std::int64_t block = m.layers > 0 ? (count - ends) / m.layers : 0;
  const std::int64_t norm = m.norm == NormKind::kLayerNorm ? 2 * m.width : m.width;
  const std::int64_t last = norm + (m.tie_embeddings ? 0 : m.vocabulary / tensor * m.width);
  const std::int64_t embedding = ends - last, tied = m.tie_embeddings ? embedding : 0;
  const auto part = [&](std::int64_t unit) { return (unit + owners - 1) / owners; };
  const std::int64_t owned = part(embedding) + m.layers * part(block) + part(last);

  ShardingMemory memory;
  if (owners == 1 || shard == OptimizerShard::kNone) {
    memory.states = 4 * count;
    return memory;
  }
  if (shard == OptimizerShard::kStates) {
    memory.states = 2 * count + 2 * owned;
    return memory;
  }
  // Gradients of the unit in backward and of the one before, which is being summed; of tied
  // embeddings all the time.
  const bool several = m.layers > 1;
  memory.states = count + 3 * owned;
  memory.loss = last + tied;
  memory.last_backward = block + last + tied;
  memory.backward = several ? 2 * block + tied : 0;
  memory.ends = embedding + block;
  if (shard == OptimizerShard::kGradients) return memory;
  // Weights of the unit at work and of the next, which is being gathered. The last block's stay
  // until its backward.
  memory.states = 4 * owned;
  memory.forward = block + last;
  memory.loss += block + last + tied;
  memory.last_backward += several ? 2 * block : block;
  memory.backward += m.layers > 2 ? 2 * block : block;
  return memory;
}

}  // namespace longspan::model
