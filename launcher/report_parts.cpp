/// The lower half of the page of `longspan report`: where time and memory go, what was predicted,
/// what happened, on what, with which settings.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "launcher/progress.hpp"
#include "launcher/report.hpp"
#include "launcher/table.hpp"

namespace longspan::launcher {
namespace {

constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();
constexpr double kMiB = 1048576;
/// Of events and of checkpoints: the newest are shown.
constexpr std::size_t kMostRows = 100;

/// Stacked or grouped bars, filled one value at a time.
class Bars {
 public:
  explicit Bars(std::vector<std::string> categories) : categories_(std::move(categories)) {}
  void set(std::size_t category, const std::string& name, double value) {
    auto at = std::find_if(series_.begin(), series_.end(),
                           [&](const Series& s) { return s.name == name; });
    if (at == series_.end()) {
      series_.push_back({.name = name, .x = {}, .y = std::vector(categories_.size(), kNothing)});
      at = series_.end() - 1;
    }
    at->y[category] = value;
  }
  bool empty() const { return series_.empty(); }
  /// The largest first, in all categories alike; those beyond `most` become one.
  void keep_largest(std::size_t most, const std::string& rest) {
    const auto sum = [](const Series& s) {
      double total = 0;
      for (const double v : s.y) total += std::isfinite(v) ? v : 0;
      return total;
    };
    std::stable_sort(series_.begin(), series_.end(),
                     [&](const Series& a, const Series& b) { return sum(a) > sum(b); });
    if (series_.size() <= most) return;
    Series other{.name = rest, .x = {}, .y = std::vector(categories_.size(), 0.0)};
    for (std::size_t i = most - 1; i < series_.size(); ++i)
      for (std::size_t c = 0; c < categories_.size(); ++c)
        if (std::isfinite(series_[i].y[c])) other.y[c] += series_[i].y[c];
    series_.resize(most - 1);
    series_.push_back(std::move(other));
  }
  void add_to(Page& page, Chart chart) const {
    chart.categories = categories_;
    chart.series = series_;
    page.chart(std::move(chart));
  }

 private:
  std::vector<std::string> categories_;
  std::vector<Series> series_;
};

std::string without_underscores(std::string name) {
  std::replace(name.begin(), name.end(), '_', ' ');
  return name;
}

/// A row of "run, what, predicted, measured, ratio", unless neither is known.
void add_row(PageTable& table, const std::string& run, const std::string& what,
             const ReportedPlan::Pair& pair, double unit, const char* format) {
  if (!pair.predicted && !pair.measured) return;
  const auto text = [&](const std::optional<double>& v) {
    return v ? fmt::format(fmt::runtime(format), *v / unit) : std::string("–");
  };
  const bool both = pair.predicted && pair.measured && *pair.measured > 0;
  table.rows.push_back({run, what, text(pair.predicted), text(pair.measured),
                        both ? fmt::format("{:.2f}", *pair.predicted / *pair.measured) : ""});
}

/// The newest rows, and what was left out said.
void add_newest(Page& page, PageTable table) {
  if (const std::size_t all = table.rows.size(); all > kMostRows) {
    table.rows.erase(table.rows.begin(), table.rows.end() - static_cast<std::ptrdiff_t>(kMostRows));
    table.caption +=
        fmt::format(" (the last {} of {})", kMostRows, grouped(static_cast<std::int64_t>(all)));
  }
  page.table(table);
}

std::string step_text(std::int64_t step) {
  return step < 0 ? "" : grouped(step);
}

std::vector<std::string> names_of(const std::vector<const ReportedRun*>& runs) {
  std::vector<std::string> names;
  for (const ReportedRun* run : runs) names.push_back(run->name);
  return names;
}

template <class Condition>
std::vector<const ReportedRun*> those(const std::vector<ReportedRun>& runs, Condition condition) {
  std::vector<const ReportedRun*> some;
  for (const ReportedRun& run : runs)
    if (condition(run)) some.push_back(&run);
  return some;
}

}  // namespace

void add_step_parts(Page& page, const std::vector<ReportedRun>& runs) {
  const auto profiled = those(runs, [](const ReportedRun& run) { return run.profile.has_value(); });
  if (profiled.empty()) return;
  Bars bars(names_of(profiled));
  for (std::size_t r = 0; r < profiled.size(); ++r) {
    const StepProfile& p = *profiled[r]->profile;
    const double ms = 1e3 / static_cast<double>(p.steps);
    for (const auto& o : p.operations) bars.set(r, o.name, ms * o.seconds);
    bars.set(r, "communication", ms * p.communication_seconds);
    bars.set(r, "waiting for data", ms * p.data_seconds);
    bars.set(r, "the program itself", ms * std::max(0.0, other_seconds(p)));
  }
  bars.keep_largest(8, "all the rest");
  bars.add_to(page, {.title = "Where the time of a step goes",
                     .caption = "Rank 0, mean over the profiled steps (log.profile=on).",
                     .y_title = "ms",
                     .series = {}});
}

void add_memory(Page& page, const std::vector<ReportedRun>& runs) {
  const auto known = those(runs, [](const ReportedRun& run) {
    return run.plan || !run.metrics.peak_memory_bytes.empty();
  });
  if (known.empty()) return;
  page.section("Memory");
  Bars sums(names_of(known));
  std::vector<const ReportedRun*> planned;
  for (std::size_t r = 0; r < known.size(); ++r) {
    const ReportedRun& run = *known[r];
    const RunSummary summary = summary_of(run);
    if (run.plan) {
      if (run.plan->allocated_bytes.predicted)
        sums.set(r, "arrays, predicted", *run.plan->allocated_bytes.predicted / kMiB);
      if (run.plan->allocated_bytes.measured)
        sums.set(r, "arrays, measured", *run.plan->allocated_bytes.measured / kMiB);
      if (run.plan->resident_bytes.predicted)
        sums.set(r, "process, predicted", *run.plan->resident_bytes.predicted / kMiB);
      if (!run.plan->memory.empty()) planned.push_back(&run);
    }
    if (std::isfinite(summary.peak_memory_bytes))
      sums.set(r, "process, measured", summary.peak_memory_bytes / kMiB);
  }
  if (!sums.empty())
    sums.add_to(page, {.title = "Peak memory of a rank",
                       .caption = "The largest rank. The process has its program, its libraries "
                                  "and their buffers beside the arrays.",
                       .y_title = "MiB",
                       .series = {},
                       .grouped = true});
  if (planned.empty()) return;
  Bars kinds(names_of(planned));
  for (std::size_t r = 0; r < planned.size(); ++r)
    for (const auto& [name, bytes] : planned[r]->plan->memory)
      if (bytes > 0 && name != "program") kinds.set(r, without_underscores(name), bytes / kMiB);
  if (!kinds.empty())
    kinds.add_to(page, {.title = "What the arrays are for",
                        .caption = "As predicted, by kind.",
                        .y_title = "MiB a rank",
                        .series = {}});
}

void add_predictions(Page& page, const std::vector<ReportedRun>& runs) {
  const auto planned = those(runs, [](const ReportedRun& run) { return run.plan.has_value(); });
  if (planned.empty()) return;
  page.section("Predicted and measured");
  PageTable table{.caption = "",
                  .columns = {"run", "what", "predicted", "measured", "ratio"},
                  .rows = {},
                  .text_columns = 2};
  std::vector<const ReportedRun*> timed;
  std::map<std::string, std::vector<std::string>> untimed;  // by reason
  for (const ReportedRun* run : planned) {
    const ReportedPlan& plan = *run->plan;
    add_row(table, run->name, "arrays of a rank, MiB", plan.allocated_bytes, kMiB, "{:.1f}");
    add_row(table, run->name, "memory of a rank's process, MiB", plan.resident_bytes, kMiB,
            "{:.1f}");
    add_row(table, run->name, "a step, ms", plan.step_seconds, 1e-3, "{:.4g}");
    add_row(table, run->name, "sent by a rank in a step, MiB", plan.sent_bytes, kMiB, "{:.4g}");
    if (!plan.seconds.empty())
      timed.push_back(run);
    else
      untimed[plan.calibration].push_back(run->name);
  }
  page.table(table);
  for (const auto& [reason, names] : untimed)
    if (!reason.empty())
      page.paragraph(
          fmt::format("Seconds were not predicted for {}: {}.", fmt::join(names, ", "), reason));
  if (timed.empty()) return;
  Bars parts(names_of(timed));
  for (std::size_t r = 0; r < timed.size(); ++r)
    for (const auto& [name, seconds] : timed[r]->plan->seconds)
      if (seconds > 0) parts.set(r, without_underscores(name), 1e3 * seconds);
  if (!parts.empty()) {
    parts.keep_largest(8, "all the rest");
    parts.add_to(page, {.title = "The predicted step, by part", .y_title = "ms", .series = {}});
  }
}

void add_events(Page& page, const std::vector<ReportedRun>& runs) {
  page.section("What happened");
  PageTable saves{.caption = "Checkpoints",
                  .columns = {"run", "step", "on disk, written", "seconds", "in the way, s"},
                  .rows = {},
                  .text_columns = 1};
  PageTable events{
      .caption = "Starts and ends",
      .columns = {"run", "what", "note", "when", "step", "ranks", "job", "restart", "exit status"},
      .rows = {},
      .text_columns = 3};
  for (const ReportedRun& run : runs) {
    for (const SavedCheckpoint& c : run.checkpoints)
      saves.rows.push_back(
          {run.name, step_text(c.step),
           c.written > 0 ? utc_text(static_cast<std::int64_t>(c.written)) : "no longer",
           c.seconds >= 0 ? fmt::format("{:.2f}", c.seconds) : "",
           c.in_the_way >= 0 ? fmt::format("{:.2f}", c.in_the_way) : ""});
    for (const RunEvent& e : run.facts.history)
      events.rows.push_back({run.name, e.event, e.note, utc_text(static_cast<std::int64_t>(e.time)),
                             step_text(e.step), e.ranks > 0 ? std::to_string(e.ranks) : "", e.job,
                             e.restart > 0 ? std::to_string(e.restart) : "",
                             e.status >= 0 ? std::to_string(e.status) : ""});
  }
  if (events.rows.empty()) page.paragraph("There is no history of starts and ends.");
  if (!events.rows.empty()) add_newest(page, std::move(events));
  if (saves.rows.empty()) page.paragraph("No checkpoint was written.");
  if (!saves.rows.empty()) add_newest(page, std::move(saves));
}

void add_hardware(Page& page, const std::vector<ReportedRun>& runs) {
  PageTable table{.caption = "", .columns = {""}, .rows = {}};
  const std::vector<std::pair<std::string, std::string>> lines = {
      {"processor", ""},    {"ranks", "ranks"},
      {"place", ""},        {"job", "job"},
      {"device", "device"}, {"peak", "peak"},
      {"a step", "a step"}, {"attention over", "attention"},
      {"program", ""}};
  for (const auto& [title, key] : lines) table.rows.push_back({title});
  for (const ReportedRun& run : runs) {
    table.columns.push_back(run.name);
    std::map<std::string, std::string> header(run.header.begin(), run.header.end());
    std::string place;
    for (const RunEvent& e : run.facts.history)
      if (e.event == "started" && !e.where.empty()) place = e.where.substr(0, e.where.rfind(':'));
    for (std::size_t i = 0; i < lines.size(); ++i) {
      const auto& [title, key] = lines[i];
      table.rows[i].push_back(title == "processor" ? (run.plan ? run.plan->processor : "")
                              : title == "place"   ? place
                              : title == "program" ? run.program
                                                   : header[key]);
    }
  }
  table.text_columns = table.columns.size();
  std::erase_if(table.rows, [](const std::vector<std::string>& row) {
    return std::all_of(row.begin() + 1, row.end(), [](const auto& text) { return text.empty(); });
  });
  if (table.rows.empty()) return;
  page.section("Hardware and program");
  page.table(table);
}

void add_configuration(Page& page, const std::vector<ReportedRun>& runs) {
  PageTable table{.caption = "All settings", .columns = {"setting"}, .rows = {}};
  std::vector<std::string> order;
  for (const ReportedRun& run : runs) {
    table.columns.push_back(run.name);
    for (const IniEntry& entry : run.config)
      if (std::find(order.begin(), order.end(), entry.name) == order.end())
        order.push_back(entry.name);
  }
  if (order.empty()) return;
  table.text_columns = table.columns.size();
  for (const std::string& name : order) {
    std::vector<std::string> row = {name};
    for (const ReportedRun& run : runs) {
      const auto at = std::find_if(run.config.begin(), run.config.end(),
                                   [&](const IniEntry& entry) { return entry.name == name; });
      row.push_back(at == run.config.end() ? "" : at->value);
    }
    table.rows.push_back(std::move(row));
  }
  page.section("Configuration");
  page.folded_table(table);
}

}  // namespace longspan::launcher
