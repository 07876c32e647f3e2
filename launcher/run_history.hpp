/// What has happened to a run from outside: submitted, started, stopped, restarted. One object a
/// line in `<run directory>/history.jsonl`, which only ever grows; whoever starts, supervises or
/// shows a run (submit, train, launch, status) shares it. Nothing here communicates.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longspan::launcher {

struct RunEvent {
  double time = 0;  ///< seconds since 1970; 0 = now, when it is written
  /// submitted; started, ended: the ranks; restarted: by `launch`; requeued, chained, gave-up,
  /// job-ended: what a batch job has decided after its ranks had ended.
  std::string event = {};
  std::string job = {};    ///< Slurm job id; empty without Slurm
  int restart = 0;         ///< of that job, or of `launch`
  std::int64_t step = -1;  ///< of the run at that moment; -1 = not known
  int ranks = 0;           ///< 0 = not known
  int status = -1;         ///< exit status of what ended; -1 = nothing ended
  std::string where = {};  ///< "host:pid" of rank 0, or the log of a job
  std::string note = {};   ///< for people, one line
};

/// Adds a line, whole or not at all, also when several processes write. Makes the folder if need
/// be. Throws Error.
void append_event(const std::string& run_directory, RunEvent event);
/// Oldest first; lines cut short by a crash are left out. Empty if there is no history.
std::vector<RunEvent> read_history(const std::string& run_directory);

/// The wish that a run saves and ends, and is not started again by its supervisor: the file
/// `<run directory>/stop`, which every file system that the ranks share carries to them.
std::string stop_file(const std::string& run_directory);
void request_stop(const std::string& run_directory);  ///< throws Error
bool stop_requested(const std::string& run_directory);
void withdraw_stop(const std::string& run_directory);  ///< by whoever starts the run anew

}  // namespace longspan::launcher
