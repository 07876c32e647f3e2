/// What a step measured, for programs (metrics.jsonl) and for people (the table on the terminal).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "parallel/handle.hpp"

namespace longspan::launcher {

/// Over all ranks. The names are the keys of metrics.jsonl.
struct StepMetrics {
  std::int64_t step = 0;    ///< counted from 1
  std::int64_t tokens = 0;  ///< valid targets since the beginning of the run
  double loss = 0;          ///< mean over the tokens of the step, nats
  double grad_norm = 0;     ///< before clipping
  double learning_rate = 0;
  double step_seconds = 0;  ///< the slowest rank
  double tokens_per_second = 0;
  double mfu = 0;           ///< model FLOPs per second over the measured peak of all ranks, 0 to 1
  double comm_seconds = 0;  ///< communication that nothing hid, the slowest rank
  double data_seconds = 0;  ///< spent waiting for data, the slowest rank
  std::int64_t peak_memory_bytes = 0;     ///< resident, or of the GPU; the largest rank
  std::optional<double> validation_loss;  ///< only where it was measured
  double hfu = 0;  ///< as mfu, with what was not kept and computed again (as Chowdhery et al. 2022)
  /// Only on GPUs that tell (gpu_meter.hpp).
  std::optional<double> gpu_utilisation, gpu_power_watts, joules_per_token;
  std::optional<std::int64_t> gpu_memory_bytes;
};

/// One object a line, without '\n'. Numbers read back to the same bits; what is not finite is null.
std::string to_json(const StepMetrics& metrics);

/// metrics.jsonl of a run. Every line is in the file when write() returns; what a full disk did not
/// take waits in memory and goes first when there is room again. One rank has one.
class MetricsWriter {
 public:
  /// Continues `path` after `last_step`: lines of later steps (they will be computed again) and a
  /// line cut short by a crash go first, by a new file that takes the old one's place in one move.
  /// Makes the file if there is none. Throws Error.
  MetricsWriter(const std::string& path, std::int64_t last_step);
  /// The validation losses of the lines that were kept, oldest first.
  const std::vector<double>& validation_losses() const { return validation_losses_; }
  /// Throws Error if the line did not get into the file whole: it is kept for the next call.
  void write(const StepMetrics& metrics);
  /// Tries again to write what is waiting. Throws Error if it is still not in the file.
  void flush();

 private:
  static void close_file(int file);
  std::string path_;
  std::vector<double> validation_losses_;
  std::string waiting_;  ///< continues exactly where the file ends
  Handle<int, -1, close_file> file_;
};

/// Aligned lines for the terminal; the first has the header above it.
class MetricsTable {
 public:
  /// `steps` of the whole run, for the time left.
  explicit MetricsTable(std::int64_t steps) : steps_(steps) {}
  /// No '\n' at the end.
  std::string row(const StepMetrics& metrics);

 private:
  std::int64_t steps_;
  std::int64_t rows_ = 0;
  double mean_step_seconds_ = 0;
};

}  // namespace longspan::launcher
