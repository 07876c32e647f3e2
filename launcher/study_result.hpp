/// What came out of a study: the numbers of one run, from the files that every run writes, and of a
/// point, from its repeats and its series. Read next: study_table.hpp, which shows them.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "launcher/study.hpp"

namespace longspan::launcher {

constexpr double kNotKnown = std::numeric_limits<double>::quiet_NaN();

/// Of one run, or the medians of several. Parts of a step: rank 0's, the mean of the steps without
/// the first. Memory: the worst rank's. Bytes: sent in a step by the rank that sends most.
struct RunNumbers {
  double seconds = kNotKnown;  ///< of a step, median after the warm-up
  double tokens_per_second = kNotKnown, mfu = kNotKnown;
  double linear = kNotKnown, attention = kNotKnown, other_kernels = kNotKnown;
  double context_exposed = kNotKnown, tensor_exposed = kNotKnown, gradient_exposed = kNotKnown;
  double data_wait = kNotKnown, rest = kNotKnown;
  double memory_predicted = kNotKnown, memory_allocated = kNotKnown, memory_resident = kNotKnown;
  double sent_context = kNotKnown, sent_tensor = kNotKnown, sent_gradients = kNotKnown;
  double formula_context = kNotKnown, formula_tensor = kNotKnown, formula_gradients = kNotKnown;
  double predicted_seconds = kNotKnown;  ///< of a step, where the machine is calibrated
  double threads = kNotKnown;            ///< of a rank
};

struct NumberField {
  const char* name;  ///< of its column, and in result.json
  const char* unit;
  const char* help;
  double RunNumbers::*member;
};
/// All of RunNumbers, once: what is stored, compared and shown goes through this table.
const std::vector<NumberField>& number_fields();

struct RunResult {
  std::string error = {};  ///< the first line of what went wrong; empty = the run is done
  RunNumbers numbers = {};
  std::string host = {}, processor = {};
  std::string calibration = {};  ///< of the predicted seconds, or why there is none
  bool failed() const { return !error.empty(); }
};

/// From metrics.jsonl, plan.json, profile.json and history.jsonl of a run that is done. `tokens` of
/// a step. Throws Error if it has no step after `warmup`.
RunResult collect_run(const std::string& run_directory, std::int64_t warmup, std::int64_t tokens);
/// A text that read_result() takes; numbers read back to the same bits.
std::string to_json(const RunResult& result);
/// Nothing if the text is none.
std::optional<RunResult> read_result(const std::string& json);

/// Where a run stands that has no result yet.
enum class Unfinished { kNotRun, kWaiting, kRunning };

struct PointResult {
  StudyPoint point;
  std::string state;  ///< done, failed, incomplete: repeats are missing; running, waiting, not run
  std::string error;  ///< of the first repeat that failed
  std::int64_t done = 0, failed = 0;  ///< repeats
  RunNumbers median = {};
  double seconds_min = kNotKnown, seconds_max = kNotKnown;
  /// Tokens/s over those of the smallest point of its series that is done, what they would be if
  /// all ranks were as good as there, and the one over the other.
  double speedup = kNotKnown, ideal = kNotKnown, efficiency = kNotKnown;
  /// The same with FLOPs instead of tokens: a longer sequence takes more for each.
  double flop_efficiency = kNotKnown;
  std::string baseline = {};  ///< name of that point
  std::string host = {}, processor = {}, calibration = {};
};

/// `results[p][r]`, `unfinished[p][r]`: of point p, repeat r. Pure.
std::vector<PointResult> summarise(
    const StudySpec& spec, const Study& study,
    const std::vector<std::vector<std::optional<RunResult>>>& results,
    const std::vector<std::vector<Unfinished>>& unfinished);

/// The middle one; of an even number the mean of the two in the middle. NaNs do not count; NaN of
/// none.
double median_of(std::vector<double> values);

}  // namespace longspan::launcher
