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
};

/// `step_seconds` of all steps of this start, the same on every rank. Collective.
Outcome measured_outcome(std::vector<double> step_seconds, const Communicator& world);

struct Prediction {
  PlannedMemory memory;
  std::optional<StepSeconds> seconds;  ///< of the calibration; without saves
  std::string calibration;             ///< the file it is from, or why there is none
};

/// A calibration that cannot be read costs the prediction of the seconds, not the run.
Prediction predict_run(const TrainingRun& run, int ranks_per_node);

std::string prediction_text(const Prediction& prediction, const Outcome& outcome);
std::string prediction_json(const Prediction& prediction, const Outcome& outcome);

}  // namespace longspan::launcher
