#include "model/kernels/cpu/instruction_set.hpp"

#include <atomic>

#include "hwy/highway.h"
#include "model/kernels/cpu/attention_amx.hpp"
#include "parallel/error.hpp"

namespace longspan::model::cpu {

namespace {
std::atomic<bool> amx_allowed{true};
}  // namespace

bool uses_amx() {
  return amx_allowed && amx_works();
}

void use_amx(bool allowed) {
  amx_allowed = allowed;
}

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
    use_amx(name == instruction_sets().front());
    return;
  }
  fail("instruction set {} is unknown or beyond this CPU: choose one of {}", name,
       fmt::join(instruction_sets(), ", "));
}

}  // namespace longspan::model::cpu
