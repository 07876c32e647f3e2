/// Where the gradients are between the layers and the optimizer; one class for each way. The calls
/// are those of ParameterSharding. Sources: parameter_sharding.hpp.
#pragma once

#include <memory>

#include "model/kernels/kernels.hpp"
#include "model/parameters.hpp"
#include "parallel/process_group.hpp"
#include "parallel/shard_map.hpp"

namespace longspan::model {

class ShardedGradients {
 public:
  virtual ~ShardedGradients() = default;
  virtual void begin_micro_batch(bool last) = 0;
  virtual void need(int unit) = 0;
  virtual void final(int unit) = 0;
  /// Waits until the owned parts are complete.
  virtual void finish() = 0;
  /// All gradients zero.
  virtual void clear() = 0;
  /// First owned element of a unit.
  virtual float* owned(int unit) = 0;
};

/// Whole on every rank, summed there in buckets during the last micro-batch.
std::unique_ptr<ShardedGradients> make_reduced_gradients(ParameterStore& store, ProcessGroup& group,
                                                         Backend backend,
                                                         std::int64_t bucket_elements);
/// Whole on every rank, each unit summed on its owners during the last micro-batch.
std::unique_ptr<ShardedGradients> make_scattered_gradients(ParameterStore& store,
                                                           const ShardMap& map, ProcessGroup& group,
                                                           Backend backend);
/// Owned sums only; a unit's gradients exist from need() until they are summed, in every
/// micro-batch. No more than one unit besides those between need() and final() exists.
std::unique_ptr<ShardedGradients> make_unit_gradients(ParameterStore& store, const ShardMap& map,
                                                      ProcessGroup& group, Backend backend);

}  // namespace longspan::model
