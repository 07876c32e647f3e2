/// `log.profile=on`: where the time of a step goes, as a table and as `<run
/// directory>/profile.json`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/kernels/profiled.hpp"

namespace longspan::launcher {

/// Sums over the profiled steps, as one rank saw them.
struct StepProfile {
  std::int64_t steps = 0;
  double seconds = 0;                ///< of the steps, validation and saves left out
  double communication_seconds = 0;  ///< that nothing hid
  double data_seconds = 0;           ///< waiting for data
  double peak_flops = 0;             ///< FLOP/s of this rank in one large matrix product
  std::vector<model::OperationTotals> operations;
};

/// Time in no operation and no wait: the program itself, and, on several ranks, waiting for the
/// slowest one in small reductions.
double other_seconds(const StepProfile& profile);
/// One row an operation, most time first; those below 0.1 % of a step are one row.
std::string profile_text(const StepProfile& profile);
std::string profile_json(const StepProfile& profile);

/// Collects a StepProfile. The first step, which warms everything up, and what the operations do
/// between steps (validation) do not count. Without kernels to look at it does nothing.
class StepProfiler {
 public:
  explicit StepProfiler(model::ProfiledKernels* kernels) : kernels_(kernels) {}
  bool on() const { return kernels_ != nullptr; }
  void begin_step();
  void end_step(double seconds, double communication_seconds, double data_seconds);
  /// `peak_flops` of this rank.
  StepProfile result(double peak_flops) const;

 private:
  model::ProfiledKernels* kernels_;
  bool warm_ = false;
  StepProfile sums_;
};

}  // namespace longspan::launcher
