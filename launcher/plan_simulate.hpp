/// `longspan plan --simulate`: its flags, and what it says. Read next: simulation.hpp, goodput.hpp.
#pragma once

#include <string>

#include "launcher/arguments.hpp"
#include "launcher/plan.hpp"

namespace longspan::launcher {

/// Throws Error (usage) if a flag of --simulate stands without it, or --simulate beside --search.
void refuse_without_simulate(const Arguments& args);

/// The report, as text or with --json as one object. Throws Error (usage) on values that are out of
/// range.
std::string simulate_plan(const Arguments& args, const Plan& plan,
                          const MachineDescription& machine);

}  // namespace longspan::launcher
