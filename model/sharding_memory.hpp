/// Elements that weights, gradients and optimizer states take on one rank, by formula: all the
/// time, and besides at the moments that decide the peak of a step.
#pragma once

#include <cstdint>

#include "model/config.hpp"

namespace longspan::model {

struct ShardingMemory {
  std::int64_t states = 0;  ///< all the time: weights, gradients and moments, or the owned parts
  // Whole units that exist besides, of weights and of gradients:
  std::int64_t forward = 0;        ///< in the forward of the last block
  std::int64_t loss = 0;           ///< in the loss
  std::int64_t last_backward = 0;  ///< in the backward of the last block
  std::int64_t backward = 0;       ///< in that of the others
  std::int64_t ends = 0;           ///< at the embedding, where few activations exist
};

/// `owners` ranks share the parameters of `model`, or what one of `tensor` ranks holds of them, as
/// `shard` says (parameter_sharding.hpp). The rank with the largest part.
ShardingMemory sharding_memory(const ModelConfig& model, OptimizerShard shard, int owners,
                               int tensor = 1);

}  // namespace longspan::model
