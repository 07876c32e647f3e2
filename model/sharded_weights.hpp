/// Where the weights are between the optimizer and the layers; one class for each way. The calls
/// are those of ParameterSharding. Sources: parameter_sharding.hpp.
#pragma once

#include <memory>

#include "model/parameters.hpp"
#include "parallel/process_group.hpp"
#include "parallel/shard_map.hpp"

namespace longspan::model {

class ShardedWeights {
 public:
  virtual ~ShardedWeights() = default;
  virtual void need(int unit, int next) = 0;
  virtual void done(int unit) = 0;
  /// The owned parts have changed. Collective, does not wait.
  virtual void updated() = 0;
  /// Waits until what this rank holds is current.
  virtual void wait() = 0;
  /// First owned element of a unit.
  virtual float* owned(int unit) = 0;
};

/// Whole on every rank, and updated there: nothing travels.
std::unique_ptr<ShardedWeights> make_whole_weights(ParameterStore& store);
/// Whole on every rank, each unit's parts updated by their owners: gathered after the update, in
/// the order of the forward pass, and waited for when the unit is first used.
std::unique_ptr<ShardedWeights> make_gathered_weights(ParameterStore& store, const ShardMap& map,
                                                      ProcessGroup& group);
/// Owned parts only; a unit is whole from need() to done(). Holds two units at a time when the
/// caller does: the one in use and the next, which is gathered meanwhile.
std::unique_ptr<ShardedWeights> make_unit_weights(ParameterStore& store, const ShardMap& map,
                                                  ProcessGroup& group, Device& device);

}  // namespace longspan::model
