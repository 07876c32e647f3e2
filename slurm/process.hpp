/// Runs a command of Slurm and keeps what it says. Standard library only.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace longspan::slurm {

struct ProcessOutcome {
  int status = -1;  ///< exit status; 128 + n: signal n; 127: there is no such command
  bool found = true, timed_out = false;
  std::string out, err;
  bool fine() const { return status == 0; }
};

/// kWithoutJob: no SLURM_ variables but SLURM_CONF.
enum class Environment { kAll, kWithoutJob };

/// Runs `words` (words[0] is looked up in PATH) with `input` on its stdin; at most for `patience`,
/// then it is killed. What Slurm has told this process about
/// the job that it runs in can be kept from it.
/// Safe beside MPI: the process is spawned, not forked.
ProcessOutcome run_process(const std::vector<std::string>& words, const std::string& input = "",
                           std::chrono::milliseconds patience = std::chrono::seconds(30),
                           Environment environment = Environment::kAll);

}  // namespace longspan::slurm
