#include "launcher/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "io/file.hpp"
#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/machine.hpp"
#include "launcher/progress.hpp"
#include "launcher/status.hpp"
#include "launcher/table.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();

/// Of the finite values from `first` on; NaN if there is none.
double median(const std::vector<double>& values, std::size_t first) {
  std::vector<double> finite;
  for (std::size_t i = first; i < values.size(); ++i)
    if (std::isfinite(values[i])) finite.push_back(values[i]);
  if (finite.empty()) return kNothing;
  const auto middle = finite.begin() + static_cast<std::ptrdiff_t>(finite.size() / 2);
  std::nth_element(finite.begin(), middle, finite.end());
  return *middle;
}

double sum(const std::vector<double>& values) {
  double total = 0;
  for (const double v : values)
    if (std::isfinite(v)) total += v;
  return total;
}

/// As longspan status finds them; a folder that is named and has nothing of a run is a run too,
/// about which there is nothing to tell.
std::vector<std::string> folders_of(const std::vector<std::string>& names) {
  if (names.empty()) return find_runs({});
  std::vector<std::string> folders;
  for (const std::string& name : names) {
    std::string folder = name;
    while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
    const bool empty = io::is_directory(folder) && !is_run(folder) && !is_run("runs/" + folder);
    if (!empty) folder = find_runs({name}).front();
    if (std::find(folders.begin(), folders.end(), folder) == folders.end())
      folders.push_back(folder);
  }
  return folders;
}

Json json_or_null(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

Json to_json(const ReportedRun& run) {
  const RunSummary s = summary_of(run);
  return {{"run", run.facts.directory},
          {"state", to_string(run.status.state)},
          {"step", s.step},
          {"steps", s.steps},
          {"loss", json_or_null(s.loss)},
          {"validation_loss", json_or_null(s.validation_loss)},
          {"tokens_per_second", json_or_null(s.tokens_per_second)},
          {"step_seconds", json_or_null(s.step_seconds)},
          {"mfu", json_or_null(s.mfu)},
          {"communication_share", json_or_null(s.communication)},
          {"peak_memory_bytes", json_or_null(s.peak_memory_bytes)},
          {"restarts", run.status.restarts},
          {"problems", run.problems}};
}

/// The first columns of the page's table.
std::string terminal_table(const std::vector<ReportedRun>& runs) {
  using Align = Table::Align;
  Table table({{"run", Align::kLeft},
               {"state", Align::kLeft},
               {"step"},
               {"loss"},
               {"validation"},
               {"tokens/s"},
               {"MFU %"},
               {"comm %"},
               {"memory"},
               {"restarts"}});
  const auto cell = [](double value, const char* format, double times = 1) {
    return std::isfinite(value) ? fmt::format(fmt::runtime(format), times * value) : std::string();
  };
  for (const ReportedRun& run : runs) {
    const RunSummary s = summary_of(run);
    table.add({run.name, to_string(run.status.state), grouped(s.step), cell(s.loss, "{:.4f}"),
               cell(s.validation_loss, "{:.4f}"), cell(s.tokens_per_second, "{:.0f}"),
               cell(s.mfu, "{:.1f}", 100), cell(s.communication, "{:.1f}", 100),
               cell(s.peak_memory_bytes, "{:.0f} MiB", 1.0 / 1048576),
               run.status.restarts > 0 ? std::to_string(run.status.restarts) : ""});
  }
  return table.text();
}

}  // namespace

RunSummary summary_of(const ReportedRun& run) {
  const MetricColumns& m = run.metrics;
  RunSummary s;
  s.steps = run.facts.steps;
  s.step = m.step.empty() ? 0 : static_cast<std::int64_t>(m.step.back());
  s.loss = m.loss.empty() ? kNothing : m.loss.back();
  s.validation_loss = s.peak_memory_bytes = kNothing;
  for (const double v : m.validation_loss) s.validation_loss = std::fmin(s.validation_loss, v);
  for (const double v : m.peak_memory_bytes)
    s.peak_memory_bytes = std::fmax(s.peak_memory_bytes, v);
  // The first step warms everything up, but where it is all there is, it counts.
  const std::size_t first = m.step.size() > 1 ? 1 : 0;
  s.tokens_per_second = median(m.tokens_per_second, first);
  s.step_seconds = median(m.step_seconds, first);
  s.mfu = median(m.mfu, first);
  s.seconds = sum(m.step_seconds);
  s.communication = s.seconds > 0 ? sum(m.comm_seconds) / s.seconds : kNothing;
  s.data = s.seconds > 0 ? sum(m.data_seconds) / s.seconds : kNothing;
  return s;
}

void name_runs(std::vector<ReportedRun>& runs) {
  std::set<std::string> names;
  for (const ReportedRun& run : runs) names.insert(io::base_name(run.facts.directory));
  for (ReportedRun& run : runs)
    run.name =
        names.size() == runs.size() ? io::base_name(run.facts.directory) : run.facts.directory;
}

ExitStatus report_command(const std::vector<std::string>& arguments) {
  const Arguments args(
      arguments, "report",
      "writes one HTML page about runs, which opens anywhere without a network: loss, throughput, "
      "memory, communication, predicted against measured, events, configuration. RUN is a run "
      "directory or a name below runs/; without one, all runs below runs/. Several runs are "
      "compared",
      {{"output", "F.html", "the page", "report.html"},
       {"json", "", "the numbers of the table as JSON, beside the page"}},
      "longspan report runs/code runs/code-wide --output compare.html");
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  const std::vector<std::string> folders = folders_of(args.positional());
  if (folders.empty()) fail_usage("report: no runs below runs/: name a run directory");
  std::vector<ReportedRun> runs;
  for (const std::string& folder : folders) runs.push_back(read_reported_run(folder));
  name_runs(runs);
  for (const ReportedRun& run : runs)
    for (const std::string& problem : run.problems) log::warn("{}: {}", run.name, problem);

  const std::string output = args.text("output");
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const std::string when = utc_text(std::chrono::duration_cast<std::chrono::seconds>(now).count());
  const std::string version = version_line();
  write_page(output,
             report_page(runs, fmt::format("{}, {}", when, version.substr(0, version.find(',')))));
  if (args.has("json")) {
    Json all = Json::array();
    for (const ReportedRun& run : runs) all.push_back(to_json(run));
    fmt::print("{}\n", Json{{"page", output}, {"runs", all}}.dump(2, ' ', false,
                                                                  Json::error_handler_t::replace));
  } else {
    fmt::print("{}wrote {}: {}\n", terminal_table(runs), output,
               io::format_bytes(io::file_size(output)));
  }
  return ExitStatus::kDone;
}

}  // namespace longspan::launcher
