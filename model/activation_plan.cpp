#include "model/activation_plan.hpp"

#include "parallel/error.hpp"

namespace longspan::model {

ActivationPlan uniform_plan(Keep keep, std::int64_t layers) {
  if (keep == Keep::kAuto) fail("memory.keep=auto has to be worked out before a model is built");
  return {std::vector<Keep>(static_cast<std::size_t>(layers), keep)};
}

}  // namespace longspan::model
