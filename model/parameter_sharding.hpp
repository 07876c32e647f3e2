/// Weights, gradients and optimizer states over the ranks that compute with the same weights: who
/// owns which part, and how gradients and weights travel (ZeRO, Rajbhandari et al. 2020; weights
/// come and go a unit at a time as in Zhao et al. 2023). optimizer.shard = none: gradients are
/// summed on all ranks in buckets while backward runs. states: each unit's gradients are summed on
/// their owners while backward runs, the owners update their part of the weights, and the updated
/// units are gathered while the next forward runs. gradients: besides, a unit's gradients exist
/// only from its backward to the end of its reduction, and are summed in every micro-batch.
/// parameters: besides, a unit's weights are gathered before its forward and its backward, one unit
/// ahead, and released after. Sums are in rank order under all of them: with one micro-batch a step
/// all give the same bits. Read next: shard_map.hpp, sharded_weights.hpp, sharded_gradients.hpp.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/config.hpp"
#include "model/kernels/kernels.hpp"
#include "model/parameters.hpp"
#include "parallel/communicator.hpp"
#include "parallel/data_parallel.hpp"
#include "parallel/process_group.hpp"

namespace longspan::model {

class ShardedWeights;
class ShardedGradients;

/// A run of the flat parameters that this rank updates: their weights, and behind them, after
/// finish_gradients(), the complete sums of their gradients.
struct OwnedRange {
  FlatRange range;
  float* weight = nullptr;
  float* gradient = nullptr;
};

class ParameterSharding : public UnitKeeper {
 public:
  /// Becomes the keeper of `store`, which was allocated for the same `shard`. `group` and `owners`
  /// are the ranks that compute with the same weights, in the same order; all of it outlives the
  /// sharding.
  ParameterSharding(OptimizerShard shard, ParameterStore& store, ProcessGroup& group,
                    const Communicator& owners, Backend backend,
                    std::int64_t bucket_elements = GradientReducer::kBucketElements);
  ~ParameterSharding() override;
  ParameterSharding(const ParameterSharding&) = delete;
  ParameterSharding& operator=(const ParameterSharding&) = delete;

  /// Sets the initial weights: the same on every mesh and under every mode. Collective.
  void initialize(std::uint64_t seed);
  /// Before each Transformer::train; `last`: of the step.
  void begin_micro_batch(bool last);
  /// After the last one: waits until the gradients of owned() are sums over all ranks. Collective.
  void finish_gradients();

  /// What this rank updates, in ascending order; over all ranks each element once, except under
  /// none, where every rank owns everything. The pointers stay valid.
  const std::vector<OwnedRange>& owned() const { return owned_; }
  /// Whether every rank owns everything.
  bool whole() const { return whole_; }
  /// Adds up what the owners know of their parts, in rank order. Collective; under none there is
  /// nothing to add and nobody is asked.
  double sum_over_owners(double mine) const;

  /// The weights of owned() have changed and the gradients are used up: clears them and starts the
  /// changed weights on their way. Collective, without waiting.
  void updated();
  /// Returns when all weights that this rank holds are the current ones.
  void wait_for_weights();

  void need_weights(int unit, int next) override;
  void done_weights(int unit) override;
  void need_gradients(int unit) override;
  void gradients_final(int unit) override;

 private:
  ParameterStore& store_;
  const Communicator& owners_;
  ShardMap map_;
  bool whole_;
  std::unique_ptr<ShardedWeights> weights_;
  std::unique_ptr<ShardedGradients> gradients_;
  std::vector<OwnedRange> owned_;
};

}  // namespace longspan::model
