/// AdamW over the flat parameters (Loshchilov & Hutter 2019), with the global gradient norm and its
/// clipping.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.hpp"
#include "model/kernels/kernels.hpp"
#include "model/parameters.hpp"

namespace longspan::model {

class AdamW {
 public:
  AdamW(ParameterStore& store, const OptimizerConfig& config, Backend backend);

  /// L2 norm of all gradients, in double. The gradients are complete (reduced) on every rank, so is
  /// the norm. For whole parameters; with tensor ranks see replicated_gradients.hpp. Does not
  /// communicate.
  double gradient_norm() const;
  /// One update with the gradients, scaled so that their norm is at most config.clip, then clears
  /// the gradients. `step` counts from 1: it sets the bias correction. Does not communicate.
  void update(double learning_rate, double gradient_norm, std::int64_t step);

  /// Both states as tensors for a checkpoint, named optimizer/exp_avg/<name> and
  /// optimizer/exp_avg_sq/<name>.
  std::vector<ShardedArray> arrays() const;

 private:
  ParameterStore& store_;
  OptimizerConfig config_;
  Buffer<float> exp_avg_, exp_avg_sq_;
  Backend backend_;
};

}  // namespace longspan::model
