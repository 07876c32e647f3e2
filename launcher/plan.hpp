/// What a configuration will need and take on a machine before it runs: memory and bytes of a rank,
/// seconds of a step, energy and cost, what limits it and what would help. Pure. Memory is the very
/// functions that a run takes (model/flops.hpp, launcher/memory_plan.hpp), so the bytes are equal.
/// Read next: step_time.hpp, plan_search.hpp, plan_command.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/machine_file.hpp"
#include "launcher/memory_plan.hpp"
#include "launcher/step_time.hpp"
#include "model/flops.hpp"

namespace longspan::launcher {

/// Bytes on one rank.
struct PlannedMemory {
  std::int64_t weights = 0, gradients = 0, moments = 0;
  std::int64_t rounded = 0;  ///< bf16 copies of the weights
  std::int64_t activations = 0, transient = 0, staging = 0;
  std::int64_t program = 0;  ///< not in arrays: the machine's program-bytes
  /// What a run predicts of its arrays.
  std::int64_t arrays() const {
    return weights + gradients + moments + rounded + activations + transient + staging;
  }
  std::int64_t total() const { return arrays() + program; }
};

struct Plan {
  RunConfig config;  ///< resolved: the mesh, the batch and the model have no 0 left
  Placement placement;
  model::SchemeChoice scheme;
  model::RankShare share;
  model::ActivationPlan keep;
  std::string keep_reason;
  PlannedMemory memory;
  MemoryLimit limit;
  StepSeconds seconds;
  StepBytes bytes;
  double tokens_per_second = 0;
  double mfu = 0;            ///< model FLOPs / step / (peak of the machine * ranks)
  double run_seconds = 0;    ///< all of train.steps
  double watts = 0;          ///< of all nodes, pue included; 0 = the machine does not tell
  double cost = 0;           ///< of the whole run; 0 = no price
  double kilograms_co2 = 0;  ///< of the whole run; 0 = no intensity
  double step_seconds() const { return seconds.total(); }
};

/// What memory of a rank may be used: memory.budget, or 80 % of what the machine gives a rank (as a
/// run does, memory_plan.hpp).
MemoryLimit planned_limit(const RunConfig& config, const MachineDescription& machine,
                          const Placement& placement);

/// `config` as a run makes it of the same file: mesh and batch filled in, checked. model.vocabulary
/// is set. Throws Error (usage) with what does not fit the number of ranks.
RunConfig resolved_for(RunConfig config, int ranks);

/// Throws Error (usage) if it does not fit: with the smallest budget that does, and which setting
/// would make it fit; or if the machine has no rates of model.precision.
Plan plan_run(const RunConfig& config, const MachineDescription& machine,
              const Placement& placement);

/// The same without looking whether it fits.
Plan plan_anyway(const RunConfig& config, const MachineDescription& machine,
                 const Placement& placement);

/// The memory of one rank in its kinds; the sum of all but `program` is memory_estimate().total().
PlannedMemory split_memory(const RunConfig& config, const model::RankShare& share,
                           const model::MemoryEstimate& estimate);

struct Advice {
  std::string change;
  double saved = 0;      ///< of the step's seconds
  bool setting = false;  ///< of the configuration, not of the machine
};
/// Alternatives, each worked out like the plan itself: a machine with one thing twice as fast, and
/// other settings that fit. Those that save at least 0.5 %, most first.
std::vector<Advice> advise(const Plan& plan, const MachineDescription& machine);
/// The largest part of the step, for people.
std::string limiting_part(const StepSeconds& seconds);

std::string plan_text(const Plan& plan, const MachineDescription& machine,
                      const std::vector<Advice>& advice);
std::string plan_json(const Plan& plan, const MachineDescription& machine,
                      const std::vector<Advice>& advice);

/// Name and seconds of every part, in the order of StepSeconds.
std::vector<std::pair<std::string, double>> parts_of(const StepSeconds& seconds);
/// Name and bytes of every kind, in the order of PlannedMemory.
std::vector<std::pair<std::string, std::int64_t>> kinds_of(const PlannedMemory& memory);

}  // namespace longspan::launcher
