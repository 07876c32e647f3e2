#include "launcher/study_result.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "launcher/run_history.hpp"
#include "model/flops.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::ordered_json;

/// Null if there is no such file, or it is none.
Json read_json(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return json.is_object() ? json : Json(nullptr);
}

/// The number at a path of keys; NaN if there is none.
double number_at(const Json& json, const std::vector<const char*>& keys) {
  const Json* at = &json;
  for (const char* key : keys) {
    if (!at->is_object() || !at->contains(key)) return kNotKnown;
    at = &(*at)[key];
  }
  return at->is_number() ? at->get<double>() : kNotKnown;
}

std::string text_at(const Json& json, const char* key) {
  return json.is_object() && json.contains(key) && json[key].is_string()
             ? json[key].get<std::string>()
             : "";
}

void take_steps(const std::string& path, std::int64_t warmup, RunNumbers& numbers) {
  std::ifstream file(path, std::ios::binary);
  std::vector<double> seconds, mfu;
  for (std::string text; std::getline(file, text);) {
    const Json line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!(number_at(line, {"step"}) > static_cast<double>(warmup))) continue;
    seconds.push_back(number_at(line, {"step_seconds"}));
    mfu.push_back(number_at(line, {"mfu"}));
  }
  numbers.seconds = median_of(seconds);
  numbers.mfu = median_of(mfu);
  if (std::isnan(numbers.seconds)) fail("{} has no step after step {}", path, warmup);
}

void take_plan(const Json& plan, RunNumbers& n) {
  n.memory_predicted = number_at(plan, {"memory_per_rank_bytes", "predicted"});
  n.memory_allocated = number_at(plan, {"memory_per_rank_bytes", "allocated"});
  n.memory_resident = number_at(plan, {"memory_per_rank_bytes", "resident"});
  n.predicted_seconds = number_at(plan, {"step_seconds", "predicted"});
  n.sent_context = number_at(plan, {"sent_per_rank_bytes", "measured", "context"});
  n.sent_tensor = number_at(plan, {"sent_per_rank_bytes", "measured", "tensor"});
  n.sent_gradients = number_at(plan, {"sent_per_rank_bytes", "measured", "gradients"});
  n.formula_context = number_at(plan, {"sent_per_rank_bytes", "predicted", "context"});
  n.formula_tensor = number_at(plan, {"sent_per_rank_bytes", "predicted", "tensor"});
  n.formula_gradients = number_at(plan, {"sent_per_rank_bytes", "predicted", "gradients"});
  n.context_exposed = number_at(plan, {"exposed_seconds", "context"});
  n.tensor_exposed = number_at(plan, {"exposed_seconds", "tensor"});
  n.gradient_exposed = number_at(plan, {"exposed_seconds", "gradients"});
  n.threads = number_at(plan, {"threads_per_rank"});
}

void take_profile(const Json& profile, RunNumbers& n) {
  const double steps = number_at(profile, {"steps"});
  if (!(steps >= 1) || !profile.contains("operations")) return;
  n.linear = n.attention = n.other_kernels = 0;
  for (const Json& operation : profile["operations"]) {
    const std::string name = text_at(operation, "name");
    double& part = name.starts_with("matrix product") ? n.linear
                   : name.starts_with("attention")    ? n.attention
                                                      : n.other_kernels;
    part += number_at(operation, {"seconds"}) / steps;
  }
  n.data_wait = number_at(profile, {"data_seconds"}) / steps;
  n.rest = number_at(profile, {"other_seconds"}) / steps;
}

double least(const std::vector<double>& values) {
  return values.empty() ? kNotKnown : *std::min_element(values.begin(), values.end());
}
double most(const std::vector<double>& values) {
  return values.empty() ? kNotKnown : *std::max_element(values.begin(), values.end());
}

PointResult summary_of(const StudyPoint& point, const std::vector<std::optional<RunResult>>& runs,
                       const std::vector<Unfinished>& unfinished) {
  PointResult result;
  result.point = point;
  std::vector<const RunResult*> done;
  bool running = false, waiting = false;
  for (std::size_t r = 0; r < runs.size(); ++r) {
    running = running || (!runs[r] && unfinished[r] == Unfinished::kRunning);
    waiting = waiting || (!runs[r] && unfinished[r] == Unfinished::kWaiting);
    if (!runs[r]) continue;
    if (!runs[r]->failed()) done.push_back(&*runs[r]);
    if (runs[r]->failed() && result.error.empty()) result.error = runs[r]->error;
  }
  result.done = static_cast<std::int64_t>(done.size());
  result.failed =
      std::count_if(runs.begin(), runs.end(), [](const auto& run) { return run && run->failed(); });
  const bool all = result.done + result.failed == static_cast<std::int64_t>(runs.size());
  result.state = running             ? "running"
                 : waiting           ? "waiting"
                 : !all              ? (result.done > 0 ? "incomplete" : "not run")
                 : result.failed > 0 ? "failed"
                                     : "done";
  std::vector<double> seconds;
  for (const RunResult* run : done) seconds.push_back(run->numbers.seconds);
  result.seconds_min = least(seconds), result.seconds_max = most(seconds);
  for (const NumberField& field : number_fields()) {
    std::vector<double> values;
    for (const RunResult* run : done) values.push_back(run->numbers.*field.member);
    result.median.*field.member = median_of(values);
  }
  if (!done.empty()) {
    result.host = done.front()->host, result.processor = done.front()->processor;
    result.calibration = done.front()->calibration;
    result.median.tokens_per_second = static_cast<double>(point.tokens()) / result.median.seconds;
  }
  return result;
}

}  // namespace

const std::vector<NumberField>& number_fields() {
  using N = RunNumbers;
  static const std::vector<NumberField> fields = {
      {"seconds_per_step", "s", "median of the steps after the warm-up, median of the repeats",
       &N::seconds},
      {"tokens_per_second", "1/s", "tokens of a step / seconds_per_step", &N::tokens_per_second},
      {"mfu", "1", "model FLOPs over the peak that the run measured for its ranks", &N::mfu},
      {"linear_seconds", "s", "matrix products; parts of a step: rank 0, mean without the first",
       &N::linear},
      {"attention_seconds", "s", "attention, forward and backward", &N::attention},
      {"other_kernel_seconds", "s", "norms, activations, loss, optimizer, ...", &N::other_kernels},
      {"context_exposed_seconds", "s", "communication over mesh.context that nothing hid",
       &N::context_exposed},
      {"tensor_exposed_seconds", "s", "the same over mesh.tensor", &N::tensor_exposed},
      {"gradient_exposed_seconds", "s", "the same for gradients and shared weights",
       &N::gradient_exposed},
      {"data_wait_seconds", "s", "waiting for data", &N::data_wait},
      {"rest_seconds", "s", "everything else: the program, small reductions, slower ranks",
       &N::rest},
      {"memory_predicted_bytes", "B", "arrays of a rank, by formula", &N::memory_predicted},
      {"memory_allocated_bytes", "B", "arrays of the worst rank at their peak",
       &N::memory_allocated},
      {"memory_resident_bytes", "B", "the process of the worst rank at its peak",
       &N::memory_resident},
      {"context_sent_bytes", "B", "sent by a rank in a step over mesh.context", &N::sent_context},
      {"tensor_sent_bytes", "B", "the same over mesh.tensor", &N::sent_tensor},
      {"gradient_sent_bytes", "B", "the same for gradients and shared weights", &N::sent_gradients},
      {"context_formula_bytes", "B", "what the formula says", &N::formula_context},
      {"tensor_formula_bytes", "B", "what the formula says", &N::formula_tensor},
      {"gradient_formula_bytes", "B", "what the formula says", &N::formula_gradients},
      {"predicted_seconds_per_step", "s", "of the planner, where the machine is calibrated",
       &N::predicted_seconds},
      {"threads_per_rank", "", "threads of a rank", &N::threads}};
  return fields;
}

RunResult collect_run(const std::string& run_directory, std::int64_t warmup, std::int64_t tokens) {
  RunResult result;
  RunNumbers& n = result.numbers;
  take_steps(run_directory + "/metrics.jsonl", warmup, n);
  n.tokens_per_second = static_cast<double>(tokens) / n.seconds;
  const Json plan = read_json(run_directory + "/plan.json");
  take_plan(plan, n);
  take_profile(read_json(run_directory + "/profile.json"), n);
  result.processor = text_at(plan, "processor");
  result.calibration = text_at(plan, "calibration");
  for (const RunEvent& event : read_history(run_directory))
    if (event.event == "started") result.host = event.where.substr(0, event.where.rfind(':'));
  return result;
}

std::string to_json(const RunResult& result) {
  Json numbers = Json::object();
  for (const NumberField& field : number_fields()) {
    const double value = result.numbers.*field.member;
    numbers[field.name] = std::isfinite(value) ? Json(value) : Json(nullptr);
  }
  const Json json = {{"error", result.error},
                     {"host", result.host},
                     {"processor", result.processor},
                     {"calibration", result.calibration},
                     {"numbers", numbers}};
  // What a run says may be any bytes.
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

std::optional<RunResult> read_result(const std::string& text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("numbers") || !json.contains("error"))
    return std::nullopt;
  RunResult result;
  result.error = text_at(json, "error");
  result.host = text_at(json, "host");
  result.processor = text_at(json, "processor");
  result.calibration = text_at(json, "calibration");
  for (const NumberField& field : number_fields())
    result.numbers.*field.member = number_at(json["numbers"], {field.name});
  return result;
}

std::vector<PointResult> summarise(
    const StudySpec& spec, const Study& study,
    const std::vector<std::vector<std::optional<RunResult>>>& results,
    const std::vector<std::vector<Unfinished>>& unfinished) {
  std::vector<PointResult> all;
  for (std::size_t p = 0; p < study.points.size(); ++p)
    all.push_back(summary_of(study.points[p], results[p], unfinished[p]));
  const auto flops = [&](const StudyPoint& point) {
    const RunConfig config = config_of(spec, point);
    return model::model_flops(config.model, config.attention, point.batch, point.length).total();
  };
  for (PointResult& result : all) {
    if (result.done == 0) continue;
    const PointResult* base = nullptr;
    for (const PointResult& other : all) {
      const auto& series = other.point.series;
      if (other.done == 0 ||
          std::find(series.begin(), series.end(), result.point.series.front()) == series.end())
        continue;
      if (base == nullptr || other.point.ranks() < base->point.ranks()) base = &other;
    }
    result.baseline = base->point.name;
    result.ideal = static_cast<double>(result.point.ranks()) / base->point.ranks();
    result.speedup = result.median.tokens_per_second / base->median.tokens_per_second;
    result.efficiency = result.speedup / result.ideal;
    result.flop_efficiency = flops(result.point) / result.median.seconds /
                             (flops(base->point) / base->median.seconds) / result.ideal;
  }
  return all;
}

double median_of(std::vector<double> values) {
  std::erase_if(values, [](double value) { return std::isnan(value); });
  if (values.empty()) return kNotKnown;
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace longspan::launcher
