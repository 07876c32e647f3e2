#include "model/kernels/cpu/instruction_set.hpp"

#include "hwy/highway.h"
#include "parallel/error.hpp"

namespace longspan::model::cpu {

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    names.emplace_back(hwy::TargetName(target));
  }
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (hwy::TargetName(target) != name) continue;
    hwy::GetChosenTarget().Update(target);
    return;
  }
  fail("instruction set {} is unknown or beyond this CPU: choose one of {}", name,
       fmt::join(instruction_sets(), ", "));
}

}  // namespace longspan::model::cpu
