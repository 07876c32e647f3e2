/// AdamW over the flat parameters, or this rank's part of them (Loshchilov & Hutter 2019), with the
/// global gradient norm and its clipping.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.hpp"
#include "model/kernels/kernels.hpp"
#include "model/parameter_sharding.hpp"

namespace longspan::model {

class AdamW {
 public:
  /// States for what `sharding` says this rank owns; it outlives the optimizer.
  AdamW(ParameterStore& store, ParameterSharding& sharding, const OptimizerConfig& config,
        Backend backend);
  /// Of a model whose weights and gradients are whole on every rank.
  AdamW(ParameterStore& store, const OptimizerConfig& config, Backend backend);

  /// L2 norm of all gradients, in double: sums over each owned range, then over the owners in rank
  /// order. The owned gradients are complete (reduced). With tensor ranks see
  /// replicated_gradients.hpp. The same on every rank; collective unless every rank owns
  /// everything.
  double gradient_norm() const;
  /// One update with the gradients, scaled so that their norm is at most config.clip, then clears
  /// the gradients and starts the weights on their way to those who need them. `step` counts from
  /// 1: it sets the bias correction. Collective unless every rank owns everything; does not wait.
  void update(double learning_rate, double gradient_norm, std::int64_t step);

  /// Both owned states as tensors for a checkpoint, named optimizer/exp_avg/<name> and
  /// optimizer/exp_avg_sq/<name>.
  std::vector<ShardedArray> arrays() const;

 private:
  AdamW(ParameterStore& store, ParameterSharding* sharding, std::vector<OwnedRange> owned,
        const OptimizerConfig& config, Backend backend);
  void update_range(const OwnedRange& mine, std::int64_t state, AdamwArgs args);

  ParameterStore& store_;
  ParameterSharding* sharding_;  ///< null: whole
  std::vector<OwnedRange> owned_;
  OptimizerConfig config_;
  Buffer<float> exp_avg_, exp_avg_sq_;  ///< of the owned ranges, one behind the other
  Backend backend_;
};

}  // namespace longspan::model
