/// Learning rate as a function of the step alone: linear warm-up, then cosine (Loshchilov & Hutter
/// 2017), linear or constant.
#pragma once

#include <cstdint>

#include "model/config.hpp"

namespace longspan::model {

/// Step counts from 1; `steps` is the planned length of the run. The warm-up reaches the full rate
/// at step warmup_steps, the decay reaches minimum_learning_rate at step `steps`. Pure.
double learning_rate_at(const OptimizerConfig& config, std::int64_t step, std::int64_t steps);

}  // namespace longspan::model
