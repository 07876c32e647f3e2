/// What a step measured: one JSON object a line in metrics.jsonl, and one row of the table on the terminal.
#pragma once

#include <cstdint>
#include <fstream>
#include <optional>
#include <string>

namespace longspan::launcher {

/// Sums and maxima over all ranks.
struct StepMetrics {
  std::int64_t step = 0;
  std::int64_t tokens = 0;             ///< valid targets since the beginning of the run
  double loss = 0, grad_norm = 0, learning_rate = 0;
  double step_seconds = 0, tokens_per_second = 0;
  double mfu = 0;                      ///< model FLOPs per second over the measured peak of all ranks
  double comm_seconds = 0;             ///< spent waiting for bulk communication, the slowest rank
  double data_seconds = 0;             ///< spent waiting for data, the slowest rank
  std::int64_t peak_memory_bytes = 0;  ///< resident, the largest rank
  std::optional<double> validation_loss;
};

/// metrics.jsonl of a run, flushed after every line. One rank has one.
class MetricsWriter {
 public:
  /// Continues the file after `last_step`: lines of later steps, and a line cut short by a crash, are dropped first. Throws Error.
  MetricsWriter(const std::string& path, std::int64_t last_step);
  /// Throws Error if the line could not be written.
  void write(const StepMetrics& metrics);

 private:
  std::string path_;
  std::ofstream file_;
};

/// Rows for the terminal, aligned under a header that comes with the first row.
class MetricsTable {
 public:
  explicit MetricsTable(std::int64_t steps) : steps_(steps) {}
  /// One row; the first also holds the header. The time left is a running mean of the steps seen.
  std::string row(const StepMetrics& metrics);

 private:
  std::int64_t steps_;
  double mean_step_seconds_ = 0;
  std::int64_t rows_ = 0;
};

/// "1:02:03", "2:03" or "3 s".
std::string duration_text(double seconds);

}  // namespace longspan::launcher
