/// What every layer keeps of its activations between forward and backward. Read next:
/// transformer.cpp, which carries the plan out.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.hpp"

namespace longspan::model {

/// The plan a Transformer trains by: one keep mode per layer, none of them auto.
struct ActivationPlan {
  std::vector<Keep> keep_L;
};

/// memory.keep in every layer. Throws Error for auto, which has to be worked out first.
ActivationPlan uniform_plan(Keep keep, std::int64_t layers);

}  // namespace longspan::model
