/// What a run directory tells, read for `longspan report`: all of metrics.jsonl, not only its end.
/// A run that is damaged, has hardly begun or is still running is read as far as it goes, and what
/// is missing is said in `problems`. Nothing here communicates or throws for what is in the files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launcher/ini.hpp"
#include "launcher/profile.hpp"
#include "launcher/run_state.hpp"

namespace longspan::launcher {

/// metrics.jsonl by columns, one value a step; NaN where a line has none.
struct MetricColumns {
  std::vector<double> step, tokens, loss, grad_norm, learning_rate, step_seconds, tokens_per_second,
      mfu, comm_seconds, data_seconds, peak_memory_bytes, validation_loss;
  std::int64_t damaged_lines = 0;  ///< no step, or cut short; they are left out
};
/// Steps ascend: a line whose step is not above that of the line before takes the place of those
/// from its step on.
MetricColumns read_metrics(const std::string& path);

/// plan.json: predicted against measured.
struct ReportedPlan {
  struct Pair {
    std::optional<double> predicted, measured;
  };
  Pair allocated_bytes, resident_bytes, step_seconds;
  std::vector<std::pair<std::string, double>> memory, seconds;  ///< predicted, by kind and by part
  Pair sent_bytes;        ///< of a rank in a step, over all axes
  std::string processor;  ///< empty = not told
  std::string calibration;
  int threads = 0, ranks_per_node = 0;
};

struct SavedCheckpoint {
  std::int64_t step = -1;
  double seconds = -1, in_the_way = -1;  ///< -1 = not told
  double written = 0;                    ///< seconds since 1970; 0 = not on disk any more
};

struct ReportedRun {
  std::string name;  ///< as short as keeps the runs of a report apart
  RunFacts facts;
  RunStatus status;
  MetricColumns metrics;
  std::optional<ReportedPlan> plan;
  std::optional<StepProfile> profile;
  std::vector<SavedCheckpoint> checkpoints;                 ///< by step
  std::vector<IniEntry> config;                             ///< effective, in the order of the file
  std::string program;                                      ///< versions it was built from
  std::vector<std::pair<std::string, std::string>> header;  ///< of the last start, from log.txt
  std::vector<std::string> problems;                        ///< one line each
};

/// Without the queue: states of jobs are as the files tell them.
ReportedRun read_reported_run(const std::string& directory);

}  // namespace longspan::launcher
