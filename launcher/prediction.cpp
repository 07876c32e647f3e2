#include "launcher/prediction.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launcher/launch.hpp"
#include "launcher/machine.hpp"
#include "parallel/device.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

double mib(std::int64_t bytes) {
  return static_cast<double>(bytes) / 1048576;
}

ByAxis mean(const ByAxis& sum, std::int64_t steps) {
  if (steps < 1) return {};
  const double n = static_cast<double>(steps);
  return {sum.context / n, sum.tensor / n, sum.gradients / n};
}

nlohmann::ordered_json by_axis(double context, double tensor, double gradients) {
  return {{"context", context}, {"tensor", tensor}, {"gradients", gradients}};
}

nlohmann::ordered_json to_json(const GpuMemoryOutcome& o) {
  const auto counts = [](const GpuAllocations& a) {
    return nlohmann::ordered_json{{"device", a.device}, {"pinned", a.pinned}};
  };
  return {{"reserved", o.reserved},
          {"held", o.held},
          {"used", o.used},
          {"peak", o.peak},
          {"kernels", {{"predicted", o.planned_kernels}, {"peak", o.kernels}}},
          {"driver_calls",
           {{"before_steps", counts(o.before)},
            {"first_step", counts(o.first_step)},
            {"later", counts(o.later)}}}};
}

/// A step's own: saves are between the steps.
double step_total(const StepSeconds& seconds) {
  return seconds.total() - seconds.checkpoint;
}

}  // namespace

void StepTraffic::begin_step() {
  gpu_.begin_step();
  sent_before_ = run_.bytes_sent();
  exposed_before_ = run_.exposed_seconds();
}

void StepTraffic::end_step() {
  gpu_.end_step();
  if (steps_++ == 0) return;
  const auto add = [](ByAxis& sum, const ByAxis& now, const ByAxis& before) {
    sum.context += now.context - before.context;
    sum.tensor += now.tensor - before.tensor;
    sum.gradients += now.gradients - before.gradients;
  };
  add(sent_, run_.bytes_sent(), sent_before_);
  add(exposed_, run_.exposed_seconds(), exposed_before_);
}

ByAxis StepTraffic::sent_bytes() const {
  return mean(sent_, steps_ - 1);
}

ByAxis StepTraffic::exposed_seconds() const {
  return mean(exposed_, steps_ - 1);
}

Outcome measured_outcome(std::vector<double> step_seconds, const StepTraffic& traffic,
                         const TrainingRun& run) {
  const Communicator& world = run.mesh().world();
  Outcome outcome;
  const ByAxis sent = traffic.sent_bytes();
  outcome.sent_bytes = {world.all_reduce_max(sent.context), world.all_reduce_max(sent.tensor),
                        world.all_reduce_max(sent.gradients)};
  outcome.exposed_seconds = traffic.exposed_seconds();
  outcome.threads = run.threads();
  outcome.allocated_bytes = world.all_reduce_max(run.compute().backend.device.peak_bytes());
  outcome.gpu = traffic.gpu().outcome(run.reserved_bytes(), run.gpu_room(), world);
  outcome.resident_bytes = world.all_reduce_max(peak_resident_bytes());
  outcome.ranks_per_node =
      static_cast<int>(world.all_reduce_max(std::int64_t{world.split_by_node().size()}));
  outcome.steps = static_cast<std::int64_t>(step_seconds.size());
  if (step_seconds.size() < 2) return outcome;
  step_seconds.erase(step_seconds.begin());
  const auto middle = step_seconds.begin() + static_cast<std::ptrdiff_t>(step_seconds.size() / 2);
  std::nth_element(step_seconds.begin(), middle, step_seconds.end());
  outcome.median_seconds = *middle;
  return outcome;
}

Prediction predict_run(const TrainingRun& run, int ranks_per_node) {
  const RunConfig& config = run.config();
  Prediction prediction;
  prediction.memory = split_memory(config, run.share(), run.memory_estimate());
  const KeepCounts keeps = count_keeps(run.keep_plan().keep_L);
  const ContextTraffic traffic =
      context_traffic(config, run.mesh().shape(), run.share().scheme, run.share().inner);
  prediction.sent =
      step_bytes(step_exchanges(config, run.mesh().shape(), run.share(), traffic), keeps);
  const std::string path = user_folder() + "/local.ini";
  if (!std::filesystem::exists(path)) {
    prediction.calibration =
        "there is no calibration of this machine: longspan doctor --calibrate makes one";
    return prediction;
  }
  try {
    const MachineDescription machine = load_machine(path);
    const Placement placement{run.mesh().world().size(), ranks_per_node};
    prediction.calibration = path;
    if (!machine.rates(config.model.precision).given()) {
      prediction.calibration += " has no rates of model.precision";
      return prediction;
    }
    prediction.seconds =
        estimate_step(config, machine.for_rank(placement.ranks_on_node(), run.threads()), placement,
                      run.mesh().shape(), run.share(), keeps, traffic)
            .seconds;
    prediction.memory.program = static_cast<std::int64_t>(machine.program_bytes);
  } catch (const Error& e) {
    std::string why = e.what();
    std::replace(why.begin(), why.end(), '\n', ' ');
    prediction.calibration = why;
  }
  return prediction;
}

std::string prediction_text(const Prediction& p, const Outcome& o) {
  std::string text = fmt::format(
      "memory per rank: {:.1f} MiB predicted, {:.1f} MiB allocated, {:.1f} MiB resident at the "
      "peak\n",
      mib(p.memory.arrays()), mib(o.allocated_bytes), mib(o.resident_bytes));
  if (o.gpu) text += gpu_memory_text(*o.gpu) + "\n";
  if (!p.seconds) return text + fmt::format("step time was not predicted: {}", p.calibration);
  if (o.median_seconds == 0)
    return text + fmt::format(
                      "step time: {:.4g} s predicted, none measured: the first step warms "
                      "everything up",
                      step_total(*p.seconds));
  return text +
         fmt::format("step time: {:.4g} s predicted, {:.4g} s measured (median), ratio {:.2f}",
                     step_total(*p.seconds), o.median_seconds,
                     step_total(*p.seconds) / o.median_seconds);
}

std::string prediction_json(const Prediction& p, const Outcome& o) {
  using Json = nlohmann::ordered_json;
  Json memory, seconds;
  for (const auto& [name, bytes] : kinds_of(p.memory)) memory[name] = bytes;
  if (p.seconds)
    for (const auto& [name, part] : parts_of(*p.seconds)) seconds[name] = part;
  Json report = {
      {"memory_per_rank_bytes",
       {{"predicted", p.memory.arrays()},
        {"allocated", o.allocated_bytes},
        {"predicted_resident", p.memory.program > 0 ? Json(p.memory.total()) : Json(nullptr)},
        {"resident", o.resident_bytes}}},
      {"step_seconds",
       {{"predicted", p.seconds ? Json(step_total(*p.seconds)) : Json(nullptr)},
        {"measured", o.median_seconds > 0 ? Json(o.median_seconds) : Json(nullptr)}}},
      {"sent_per_rank_bytes",
       {{"predicted", by_axis(p.sent.context, p.sent.tensor, p.sent.gradients)},
        {"measured", o.steps < 2 ? Json(nullptr)
                                 : by_axis(o.sent_bytes.context, o.sent_bytes.tensor,
                                           o.sent_bytes.gradients)}}},
      {"exposed_seconds", o.steps < 2 ? Json(nullptr)
                                      : by_axis(o.exposed_seconds.context, o.exposed_seconds.tensor,
                                                o.exposed_seconds.gradients)},
      {"processor", processor_name()},
      {"threads_per_rank", o.threads},
      {"steps", o.steps},
      {"ranks_per_node", o.ranks_per_node},
      {"calibration", p.calibration},
      {"memory", memory},
      {"seconds", seconds}};
  if (o.gpu) report["gpu_memory_bytes"] = to_json(*o.gpu);
  return report.dump(2);
}

}  // namespace longspan::launcher
