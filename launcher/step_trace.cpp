#include "launcher/step_trace.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::ordered_json;

/// To the nanosecond, which a double holds for as long as a step lasts.
double microseconds(trace::Clock::duration time) {
  return std::round(std::chrono::duration<double, std::nano>(time).count()) / 1000;
}

}  // namespace

std::string trace_events(const std::vector<trace::Event>& events, trace::Clock::time_point origin,
                         int rank, const std::string& device) {
  Json array = Json::array();
  const auto meta = [&](const char* what, int thread, Json value) {
    array.push_back({{"name", what}, {"ph", "M"}, {"pid", rank}, {"tid", thread}, {"args", value}});
  };
  meta("process_name", 0, {{"name", fmt::format("rank {} ({})", rank, device)}});
  meta("process_sort_index", 0, {{"sort_index", rank}});
  std::map<std::string, int> threads;
  std::int64_t id = 0;
  for (const trace::Event& event : events) {
    const auto [thread, fresh] =
        threads.emplace(event.track.name, static_cast<int>(threads.size()) + 1);
    if (fresh) {
      meta("thread_name", thread->second, {{"name", event.track.name}});
      meta("thread_sort_index", thread->second, {{"sort_index", thread->second}});
    }
    Json line = {{"name", event.name},
                 {"cat", event.track.name},
                 {"ph", "X"},
                 {"ts", microseconds(event.begin - origin)}};
    Json numbers = Json::object();
    for (const auto& [name, number] : event.numbers) numbers[name] = number;
    if (!event.track.in_flight) {
      line["dur"] = microseconds(event.end - event.begin);
      line["pid"] = rank, line["tid"] = thread->second, line["args"] = std::move(numbers);
      array.push_back(std::move(line));
      continue;
    }
    line["ph"] = "b", line["id"] = fmt::format("{}.{}", rank, ++id);
    line["pid"] = rank, line["tid"] = thread->second;
    Json end = line;
    end["ph"] = "e", end["ts"] = microseconds(event.end - origin);
    line["args"] = std::move(numbers);
    array.push_back(std::move(line));
    array.push_back(std::move(end));
  }
  return array.dump();
}

std::string trace_file(const std::vector<std::string>& ranks, std::int64_t step) {
  std::string events;
  for (const std::string& array : ranks) {
    if (array.size() <= 2) continue;  // "[]", or a rank that is left out
    if (!events.empty()) events += ",\n";
    events.append(array, 1, array.size() - 2);
  }
  return fmt::format(
      "{{\"displayTimeUnit\": \"ms\", \"otherData\": {{\"step\": {}}}, \"traceEvents\": "
      "[\n{}\n]}}\n",
      step, events);
}

StepTrace::StepTrace(const LogConfig& config, const Communicator& world, std::string device)
    : config_(config), world_(world), device_(std::move(device)) {}

void StepTrace::begin_step(std::int64_t step) {
  if (config_.trace.empty() || ++steps_ != config_.trace_step) return;
  step_ = step;
  world_.barrier();  // the clocks of several nodes have no common beginning but this
  origin_ = trace::Clock::now();
  trace::recorder().start();
  trace::recorder().begin(fmt::format("step {}", step));
}

void StepTrace::end_step() {
  if (step_ == 0 || written_) return;
  const auto events = trace::recorder().stop();  // ends the step, and its last phase with it
  const std::string mine =
      world_.rank() < kMostRanks ? trace_events(events, origin_, world_.rank(), device_) : "";
  const std::vector<std::string> ranks = world_.gather(mine, 0);
  written_ = true;
  if (world_.rank() != 0) return;
  std::ofstream file(config_.trace, std::ios::trunc);
  file << trace_file(ranks, step_) << std::flush;
  if (!file)
    log::warn("log.trace={}: cannot be written: {}", config_.trace, std::strerror(errno));
  else
    log::info("the trace of step {} is in {}: open it in https://ui.perfetto.dev", step_,
              config_.trace);
}

void StepTrace::finish() const {
  if (!config_.trace.empty() && !written_)
    log::warn("log.trace={}: not written: this start made {} steps, log.trace-step is {}",
              config_.trace, steps_, config_.trace_step);
}

}  // namespace longspan::launcher
