#include "launcher/report_run.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string_view>

#include "io/file.hpp"
#include "launcher/progress.hpp"

namespace longspan::launcher {
namespace {

using json = nlohmann::ordered_json;  // parts stay in the order of the file

constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();

double number(const json& object, const char* key) {
  const auto at = object.find(key);
  return at != object.end() && at->is_number() ? at->get<double>() : kNothing;
}

std::string text_of(const json& object, const char* key) {
  const auto at = object.find(key);
  return at != object.end() && at->is_string() ? at->get<std::string>() : "";
}

std::string read_text(const std::string& path) {
  if (!io::is_regular_file(path)) return "";
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A JSON object in a file; a null value if there is no file. What is no object is a problem.
json read_object(const std::string& path, std::vector<std::string>& problems) {
  if (!io::path_exists(path)) return {};
  json object = json::parse(read_text(path), nullptr, /*allow_exceptions=*/false);
  if (object.is_object()) return object;
  problems.push_back(io::base_name(path) + " is damaged and left out");
  return {};
}

ReportedPlan::Pair pair_of(const json& object, const char* predicted, const char* measured) {
  ReportedPlan::Pair pair;
  if (const double v = number(object, predicted); !std::isnan(v)) pair.predicted = v;
  if (const double v = number(object, measured); !std::isnan(v)) pair.measured = v;
  return pair;
}

json child(const json& object, const char* key) {
  const auto at = object.find(key);
  return at != object.end() && at->is_object() ? *at : json::object();
}

std::vector<std::pair<std::string, double>> parts_of(const json& object) {
  std::vector<std::pair<std::string, double>> parts;
  for (const auto& [name, value] : object.items())
    if (value.is_number()) parts.emplace_back(name, value.get<double>());
  return parts;
}

std::optional<double> sum_of(const json& object) {
  if (object.empty()) return std::nullopt;
  double sum = 0;
  for (const auto& [name, value] : parts_of(object)) sum += value;
  return sum;
}

ReportedPlan plan_of(const json& object) {
  ReportedPlan plan;
  const json memory = child(object, "memory_per_rank_bytes");
  plan.allocated_bytes = pair_of(memory, "predicted", "allocated");
  plan.resident_bytes = pair_of(memory, "predicted_resident", "resident");
  plan.step_seconds = pair_of(child(object, "step_seconds"), "predicted", "measured");
  plan.memory = parts_of(child(object, "memory"));
  plan.seconds = parts_of(child(object, "seconds"));
  const json sent = child(object, "sent_per_rank_bytes");
  plan.sent_bytes = {sum_of(child(sent, "predicted")), sum_of(child(sent, "measured"))};
  plan.processor = text_of(object, "processor");
  plan.calibration = text_of(object, "calibration");
  const auto whole = [&](const char* key) {
    const double v = number(object, key);
    return v >= 1 && v < 1e6 ? static_cast<int>(v) : 0;
  };
  plan.threads = whole("threads_per_rank");
  plan.ranks_per_node = whole("ranks_per_node");
  return plan;
}

std::optional<StepProfile> profile_of(const json& object, std::vector<std::string>& problems) {
  if (object.is_null()) return std::nullopt;
  StepProfile profile;
  profile.steps = static_cast<std::int64_t>(std::max(0.0, number(object, "steps")));
  profile.seconds = number(object, "seconds");
  profile.communication_seconds = number(object, "comm_seconds");
  profile.data_seconds = number(object, "data_seconds");
  if (const auto all = object.find("operations"); all != object.end() && all->is_array())
    for (const json& o : *all)
      if (o.is_object() && !std::isnan(number(o, "seconds"))) {
        profile.operations.emplace_back();
        profile.operations.back().name = text_of(o, "name");
        profile.operations.back().seconds = number(o, "seconds");
      }
  const bool whole = profile.steps > 0 && std::isfinite(profile.seconds) &&
                     std::isfinite(profile.communication_seconds) &&
                     std::isfinite(profile.data_seconds);
  if (whole) return profile;
  problems.emplace_back("profile.json has no steps and is left out");
  return std::nullopt;
}

/// Lines of log.txt that describe a start; the last start counts.
void read_header(std::string_view line, std::map<std::string, std::string>& header) {
  const auto take = [&](const char* name, std::string_view prefix) {
    if (!line.starts_with(prefix)) return;
    header[name] = line.substr(prefix.size());
  };
  take("device", "device: ");
  take("peak", "peak: ");
  take("attention", "attention over ");
  take("job", "Slurm job ");
  take("a step", "a step: ");
  if (line.find(" (mesh.data=") != std::string_view::npos &&
      line.find(" parameters; ") != std::string_view::npos)
    header["ranks"] = line;
}

/// "saved runs/a/checkpoints/step-0000000004 in 1.50 s, 0.36 s of it in the way"
void read_saved(std::string_view line, std::map<std::int64_t, SavedCheckpoint>& saved) {
  constexpr std::string_view kStep = "/step-";
  if (!line.starts_with("saved ")) return;
  const std::size_t at = line.rfind(kStep);
  if (at == std::string_view::npos) return;
  SavedCheckpoint one;
  const std::string text(line.substr(at + kStep.size()));
  double seconds = -1, in_the_way = -1;
  long long step = -1;
  if (std::sscanf(text.c_str(), "%lld in %lf s, %lf s of it", &step, &seconds, &in_the_way) < 2)
    return;
  one.step = step, one.seconds = seconds, one.in_the_way = in_the_way;
  saved[one.step] = one;
}

void read_log(const std::string& path, ReportedRun& run,
              std::map<std::int64_t, SavedCheckpoint>& saved) {
  std::map<std::string, std::string> header;
  std::ifstream file(path, std::ios::binary);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("longspan ")) header.clear();  // a start begins with the versions
    read_header(line, header);
    read_saved(line, saved);
  }
  run.header.assign(header.begin(), header.end());
}

void read_checkpoints(const std::string& directory,
                      std::map<std::int64_t, SavedCheckpoint>& saved) {
  constexpr std::string_view kPrefix = "step-";
  constexpr std::size_t kDigits = 10;
  const std::string folder = directory + "/checkpoints";
  for (const std::string& name : io::list_directory(folder)) {
    if (!name.starts_with(kPrefix) || name.size() != kPrefix.size() + kDigits) continue;
    std::int64_t step = -1;
    const auto [end, error] =
        std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), step);
    struct stat about = {};
    if (error != std::errc() || end != name.data() + name.size() ||
        ::stat((folder + "/" + name).c_str(), &about) != 0)
      continue;
    saved[step].step = step;
    saved[step].written = static_cast<double>(about.st_mtim.tv_sec);
  }
}

void read_config(const std::string& path, ReportedRun& run) {
  const std::string text = read_text(path);
  std::vector<std::string> problems;
  run.config = parse_ini_lines(text, path, problems);
  if (!problems.empty())
    run.problems.push_back(
        fmt::format("config.ini: {} left out",
                    counted(static_cast<std::int64_t>(problems.size()), "damaged line")));
  constexpr std::string_view kVersions = "# effective configuration; ";
  if (text.starts_with(kVersions))
    run.program = text.substr(kVersions.size(), text.find('\n') - kVersions.size());
}

}  // namespace

MetricColumns read_metrics(const std::string& path) {
  MetricColumns m;
  const std::pair<const char*, std::vector<double>*> columns[] = {
      {"step", &m.step},
      {"tokens", &m.tokens},
      {"loss", &m.loss},
      {"grad_norm", &m.grad_norm},
      {"learning_rate", &m.learning_rate},
      {"step_seconds", &m.step_seconds},
      {"tokens_per_second", &m.tokens_per_second},
      {"mfu", &m.mfu},
      {"comm_seconds", &m.comm_seconds},
      {"data_seconds", &m.data_seconds},
      {"peak_memory_bytes", &m.peak_memory_bytes},
      {"validation_loss", &m.validation_loss}};
  if (!io::is_regular_file(path)) return m;
  std::ifstream file(path, std::ios::binary);
  for (std::string line; std::getline(file, line);) {
    if (line.empty()) continue;
    const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object() || !object.contains("step") || !object["step"].is_number_integer()) {
      ++m.damaged_lines;
      continue;
    }
    const double step = number(object, "step");
    while (!m.step.empty() && m.step.back() >= step)
      for (const auto& [name, column] : columns) column->pop_back();
    for (const auto& [name, column] : columns) column->push_back(number(object, name));
  }
  return m;
}

ReportedRun read_reported_run(const std::string& directory) {
  ReportedRun run;
  run.name = directory;
  run.facts = read_run(directory);
  using namespace std::chrono;
  run.status = status_of(run.facts, std::nullopt,
                         duration<double>(system_clock::now().time_since_epoch()).count());
  run.metrics = read_metrics(directory + "/metrics.jsonl");
  read_config(directory + "/config.ini", run);
  std::map<std::int64_t, SavedCheckpoint> saved;
  read_log(directory + "/log.txt", run, saved);
  read_checkpoints(directory, saved);
  for (const auto& [step, one] : saved) run.checkpoints.push_back(one);
  if (const json plan = read_object(directory + "/plan.json", run.problems); !plan.is_null())
    run.plan = plan_of(plan);
  run.profile = profile_of(read_object(directory + "/profile.json", run.problems), run.problems);

  if (run.metrics.step.empty())
    run.problems.emplace_back(io::path_exists(directory + "/metrics.jsonl")
                                  ? "metrics.jsonl has no step yet"
                                  : "there is no metrics.jsonl: no step has been measured");
  if (run.metrics.damaged_lines > 0)
    run.problems.push_back(fmt::format("metrics.jsonl: {} damaged and left out",
                                       run.metrics.damaged_lines == 1
                                           ? "1 line is"
                                           : grouped(run.metrics.damaged_lines) + " lines are"));
  if (goes_on(run.status.state))
    run.problems.push_back(
        fmt::format("{}: this is how far it has come", to_string(run.status.state)));
  return run;
}

}  // namespace longspan::launcher
