/// Where a run stands, from what lies in its directory and what the queue says of its job. Reads
/// only the ends of files: metrics.jsonl may be long. Shared by status, stop and launch. Nothing
/// here communicates.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "launcher/run_history.hpp"

namespace longspan::launcher {

enum class RunState {
  kUnknown,     ///< no history, and nothing runs: made by an older version, or by hand
  kPending,     ///< its job waits in the queue
  kRunning,     ///< a process holds its directory, or its job runs
  kRestarting,  ///< `launch` waits before it starts the ranks again
  kRequeued,    ///< its job waits in the queue to go on
  kDone,
  kStopped,  ///< on purpose, after a good checkpoint: it can be continued
  kFailed,
  kGone,  ///< it began and never said how it ended, and nothing of it is left
};
std::string to_string(RunState state);  ///< "waiting for requeue"
/// Whether it goes on without anybody's doing.
bool goes_on(RunState state);

/// The last lines of metrics.jsonl.
struct MetricsTail {
  std::int64_t step = 0;  ///< 0 = no step yet
  double loss = 0, tokens_per_second = 0;
  double step_seconds = 0;  ///< mean of the last steps
  double written = 0;       ///< seconds since 1970
};
/// Nothing if there is no line. Lines that are no steps, or cut short, are passed over.
std::optional<MetricsTail> read_metrics_tail(const std::string& path);

struct CheckpointSeen {
  std::int64_t step = -1;  ///< -1 = there is none
  double written = 0;      ///< seconds since 1970
  std::string path = {};
};
/// The newest by its name alone: what has that name is complete, if perhaps damaged since.
CheckpointSeen newest_checkpoint_seen(const std::string& run_directory);

/// What squeue says of one job.
struct QueuedJob {
  std::string state;         ///< PENDING, RUNNING, ...
  double seconds_left = -1;  ///< of its time limit; -1 = not known, or none
  std::string reason = {};   ///< why it waits
};
/// By job id. Nothing: there is no queue to ask, or it does not answer.
using Queue = std::optional<std::map<std::string, QueuedJob>>;

/// What lies in a run directory.
struct RunFacts {
  std::string directory;
  std::vector<RunEvent> history;
  std::optional<MetricsTail> metrics;
  CheckpointSeen checkpoint;
  std::int64_t steps = 0;         ///< train.steps; 0 = not known
  bool held = false;              ///< a process on this machine, or one that the file system knows
  bool supervisor_alive = false;  ///< `launch`, on this machine
  bool elsewhere = false;         ///< its last process was on another machine
};
bool is_run(const std::string& directory);
RunFacts read_run(const std::string& directory);

/// Whether a process holds the lock of the run directory.
bool run_is_held(const std::string& run_directory);

struct RunStatus {
  RunState state = RunState::kUnknown;
  std::string job;          ///< the newest one; empty = none
  QueuedJob queued;         ///< of that job; state is empty if it is not in the queue
  int restarts = 0;         ///< without the user's doing, over all of the run's life
  double eta_seconds = -1;  ///< to the last step; -1 = not known
  std::string note;         ///< for people: why it failed, why it waits
};
/// Pure. `now`: seconds since 1970.
RunStatus status_of(const RunFacts& facts, const Queue& queue, double now);

}  // namespace longspan::launcher
