/// How `train` writes its own part of the run's history, and what it knows of who started it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "launcher/run_history.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {

/// `launch` tells its ranks in this variable of the environment how often it has restarted them.
constexpr const char* kRestartVariable = "LONGSPAN_RESTART";
/// And in this one which `launch` it is and the same number, so that a later start of the ranks can
/// tell an earlier one of the same launch: "node02:4711:3" (run_directory.hpp).
constexpr const char* kLaunchVariable = "LONGSPAN_LAUNCH";

/// "node02:4711", this process.
std::string this_host_and_process();

/// Whether whoever started this process answers for the wish to stop: `launch`, which withdraws it
/// once and then minds it, or a batch job that Longspan has submitted or requeued. Everybody else
/// is a user who wants the run to go on.
bool started_by_supervisor(const std::string& run_directory);

/// append_event() for what must never stop a run: a failure is a warning.
void try_append_event(const std::string& run_directory, const RunEvent& event);

/// The "started" and the "ended" of one start of `train`; rank 0's is the one that writes.
class RunRecord {
 public:
  /// The run is set up and at `step`. Only from here on ended() has something to write.
  void started(const std::string& run_directory, int ranks, std::int64_t step);
  void reached(std::int64_t step) { event_.step = step; }
  void ended(ExitStatus status, const std::string& note = "");

 private:
  std::string directory_;
  RunEvent event_;
};

}  // namespace longspan::launcher
