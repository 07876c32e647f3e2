/// Runs as `longspan status` finds and sees them; `longspan stop` looks with the same eyes.
#pragma once

#include <string>
#include <vector>

#include "launcher/run_state.hpp"

namespace longspan::launcher {

struct SeenRun {
  RunFacts facts;
  RunStatus status;
};

/// Run directories: each name is one, or the name of one below runs/; no names = all below runs/.
/// Throws Error (usage) with the nearest name.
std::vector<std::string> find_runs(const std::vector<std::string>& names);
/// All of them, with one call of squeue if any has a job that may still be in the queue.
std::vector<SeenRun> look_at(const std::vector<std::string>& directories);

}  // namespace longspan::launcher
