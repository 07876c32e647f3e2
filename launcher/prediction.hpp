/// What a run was predicted to need and to take, against what it did: printed at its end and kept
/// in `<run directory>/plan.json`. Seconds are only predicted where `longspan doctor --calibrate`
/// has measured this machine. Read next: plan.hpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launcher/plan.hpp"
#include "launcher/training_run.hpp"

namespace longspan::launcher {

/// The worst rank's.
struct Outcome {
  std::int64_t allocated_bytes = 0;  ///< arrays, at their peak
  std::int64_t resident_bytes = 0;   ///< the process, at its peak
  int ranks_per_node = 1;
  std::int64_t steps = 0;
  double median_seconds = 0;  ///< of a step, without the first, which warms everything up; 0 = none
  ByAxis sent_bytes;          ///< in a step, without the first
  ByAxis exposed_seconds;     ///< the same, but of rank 0: it has the parts of profile.json as well
  int threads = 0;            ///< of a rank
  std::optional<GpuMemoryOutcome> gpu = {};
};

/// Sums up what steps send and wait for; what is sent between them (validation) does not count.
class StepTraffic {
 public:
  explicit StepTraffic(const TrainingRun& run) : run_(run), gpu_(run.compute()) {}
  void begin_step();
  void end_step();
  ByAxis sent_bytes() const;  ///< this rank, mean of a step without the first; 0 before the second
  ByAxis exposed_seconds() const;
  const GpuMemoryWatch& gpu() const { return gpu_; }

 private:
  const TrainingRun& run_;
  GpuMemoryWatch gpu_;
  std::int64_t steps_ = 0;
  ByAxis sent_before_, exposed_before_, sent_, exposed_;
};

/// `step_seconds` of all steps of this start, the same on every rank. Collective.
Outcome measured_outcome(std::vector<double> step_seconds, const StepTraffic& traffic,
                         const TrainingRun& run);

struct Prediction {
  PlannedMemory memory;
  StepBytes sent;                      ///< by formula, in a step
  std::optional<StepSeconds> seconds;  ///< of the calibration; without saves
  std::string calibration;             ///< the file it is from, or why there is none
};

/// A calibration that cannot be read costs the prediction of the seconds, not the run.
Prediction predict_run(const TrainingRun& run, int ranks_per_node);

std::string prediction_text(const Prediction& prediction, const Outcome& outcome);
std::string prediction_json(const Prediction& prediction, const Outcome& outcome);

}  // namespace longspan::launcher
