/// The page of `longspan report`, from top to bottom: what a reader wants to know first comes
/// first.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <set>

#include "launcher/progress.hpp"
#include "launcher/report.hpp"

namespace longspan::launcher {
namespace {

constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();

std::string cell(double value, const char* format, double times = 1) {
  return std::isfinite(value) ? fmt::format(fmt::runtime(format), times * value) : std::string();
}

/// Where runs take different numbers of tokens in a step, steps are no common measure.
bool by_tokens(const std::vector<ReportedRun>& runs) {
  double least = std::numeric_limits<double>::infinity(), most = 0;
  for (const ReportedRun& run : runs) {
    const MetricColumns& m = run.metrics;
    if (m.step.empty() || !(m.tokens.back() > 0) || !(m.step.back() > 0)) continue;
    const double tokens = m.tokens.back() / m.step.back();
    least = std::min(least, tokens);
    most = std::max(most, tokens);
  }
  return most > 1.01 * least;
}

/// One line a run; no chart where no run has a value.
class Curves {
 public:
  Curves(Page& page, const std::vector<ReportedRun>& runs)
      : page_(page), runs_(runs), tokens_(by_tokens(runs)) {}
  bool tokens() const { return tokens_; }
  using Value = std::function<double(const MetricColumns&, std::size_t)>;
  void add(Chart chart, const Value& value, bool gaps = true) {
    chart.x_title = tokens_ ? "tokens" : "step";
    for (const ReportedRun& run : runs_) {
      Series s{.name = run.name, .x = {}, .y = {}};
      bool any = false;
      for (std::size_t i = 0; i < run.metrics.step.size(); ++i) {
        const double v = value(run.metrics, i);
        any |= std::isfinite(v);
        if (!gaps && !std::isfinite(v)) continue;
        s.x.push_back(tokens_ ? run.metrics.tokens[i] : run.metrics.step[i]);
        s.y.push_back(v);
      }
      if (any && s.x.size() <= 30) s.style = Series::Style::kLineAndPoints;
      if (any) chart.series.push_back(std::move(s));
    }
    if (chart.series.empty()) return;
    if (runs_.size() == 1 && !tokens_) chart.marks = starts();
    page_.chart(std::move(chart));
  }

 private:
  /// Where the only run has been continued.
  std::vector<Chart::Mark> starts() const {
    std::vector<Chart::Mark> marks;
    bool first = true;
    for (const RunEvent& event : runs_.front().facts.history) {
      if (event.event != "started") continue;
      if (!std::exchange(first, false) && event.step > 0)
        marks.push_back({static_cast<double>(event.step),
                         event.restart > 0 ? fmt::format("restart {}", event.restart)
                                           : std::string("continued")});
    }
    return marks;
  }
  Page& page_;
  const std::vector<ReportedRun>& runs_;
  bool tokens_;
};

}  // namespace

PageTable differences(const std::vector<ReportedRun>& runs) {
  PageTable table{.caption = "What differs", .columns = {"setting"}, .rows = {}};
  std::vector<std::string> order;
  std::vector<std::map<std::string, std::string>> values;
  for (const ReportedRun& run : runs) {
    table.columns.push_back(run.name);
    auto& own = values.emplace_back();
    for (const IniEntry& entry : run.config) {
      if (std::find(order.begin(), order.end(), entry.name) == order.end())
        order.push_back(entry.name);
      own[entry.name] = entry.value;
    }
  }
  table.text_columns = table.columns.size();
  for (const std::string& name : order) {
    if (name == "run.name" || name == "run.directory") continue;
    std::set<std::string> different;
    std::vector<std::string> row = {name};
    for (std::size_t r = 0; r < runs.size(); ++r) {
      // A run without a configuration does not differ in all of it.
      if (runs[r].config.empty()) {
        row.emplace_back();
        continue;
      }
      const auto at = values[r].find(name);
      row.push_back(at == values[r].end() ? "(not there)" : at->second);
      different.insert(row.back());
    }
    if (different.size() > 1) table.rows.push_back(std::move(row));
  }
  return table;
}

void add_summary(Page& page, const std::vector<ReportedRun>& runs) {
  PageTable table{.caption = "",
                  .columns = {"run", "state", "step", "loss", "validation", "tokens/s", "s a step",
                              "MFU %", "comm. %", "MiB", "restarts", "time"},
                  .rows = {},
                  .text_columns = 2};
  for (const ReportedRun& run : runs) {
    const RunSummary s = summary_of(run);
    table.rows.push_back(
        {run.name, to_string(run.status.state),
         s.steps > 0 ? grouped(s.step) + " / " + grouped(s.steps) : grouped(s.step),
         cell(s.loss, "{:.4f}"), cell(s.validation_loss, "{:.4f}"),
         std::isfinite(s.tokens_per_second) ? grouped(std::llround(s.tokens_per_second)) : "",
         cell(s.step_seconds, "{:.4g}"), cell(s.mfu, "{:.1f}", 100),
         cell(s.communication, "{:.1f}", 100), cell(s.peak_memory_bytes, "{:.0f}", 1.0 / 1048576),
         std::to_string(run.status.restarts), duration_text(s.seconds)});
  }
  page.table(table);
  page.paragraph(
      "Loss of the last step and the best validation loss, in nats; tokens/s, seconds a step and "
      "MFU are medians without the first step; comm. % is the share of all steps in communication "
      "that nothing hid; MiB is the peak of the largest rank; time is that of all steps.");
}

void add_curves(Page& page, const std::vector<ReportedRun>& runs) {
  Curves curves(page, runs);
  page.section("Learning",
               curves.tokens()
                   ? "The runs take different numbers of tokens in a step: they are compared by "
                     "tokens."
                   : "");
  curves.add({.title = "Training loss", .y_title = "loss, nats", .series = {}},
             [](const MetricColumns& m, std::size_t i) { return m.loss[i]; });
  curves.add(
      {.title = "Validation loss", .y_title = "loss, nats", .series = {}},
      [](const MetricColumns& m, std::size_t i) { return m.validation_loss[i]; }, false);
  curves.add({.title = "Gradient norm",
              .caption = "Of the whole model, before clipping.",
              .y_title = "L2 norm",
              .y_log = true,
              .series = {}},
             [](const MetricColumns& m, std::size_t i) { return m.grad_norm[i]; });
  curves.add({.title = "Learning rate", .y_title = "rate", .y_from_zero = true, .series = {}},
             [](const MetricColumns& m, std::size_t i) { return m.learning_rate[i]; });
  page.section("Speed");
  curves.add({.title = "Throughput", .y_title = "tokens/s", .y_from_zero = true, .series = {}},
             [](const MetricColumns& m, std::size_t i) { return m.tokens_per_second[i]; });
  const auto share = [](const std::vector<double>& part, const MetricColumns& m, std::size_t i) {
    return m.step_seconds[i] > 0 ? 100 * part[i] / m.step_seconds[i] : kNothing;
  };
  curves.add({.title = "Communication",
              .caption = "That nothing hid, on the slowest rank.",
              .y_title = "% of a step",
              .y_from_zero = true,
              .series = {}},
             [&](const MetricColumns& m, std::size_t i) { return share(m.comm_seconds, m, i); });
  constexpr double kWorthAChart = 0.01;
  if (std::any_of(runs.begin(), runs.end(),
                  [&](const ReportedRun& run) { return summary_of(run).data > kWorthAChart; }))
    curves.add({.title = "Waiting for data",
                .caption = "On the slowest rank.",
                .y_title = "% of a step",
                .y_from_zero = true,
                .series = {}},
               [&](const MetricColumns& m, std::size_t i) { return share(m.data_seconds, m, i); });
}

Page report_page(const std::vector<ReportedRun>& runs, const std::string& made) {
  Page page(
      runs.size() == 1 ? "Run " + runs.front().name : fmt::format("{} runs compared", runs.size()),
      made);
  for (const ReportedRun& run : runs)
    for (const std::string& problem : run.problems) page.warning(run.name + ": " + problem);
  add_summary(page, runs);
  if (runs.size() > 1) {
    const PageTable table = differences(runs);
    if (table.rows.empty())
      page.paragraph("The configurations do not differ.");
    else
      page.table(table);
  }
  if (std::any_of(runs.begin(), runs.end(),
                  [](const ReportedRun& run) { return !run.metrics.step.empty(); }))
    add_curves(page, runs);
  add_step_parts(page, runs);
  add_memory(page, runs);
  add_predictions(page, runs);
  add_events(page, runs);
  add_hardware(page, runs);
  add_configuration(page, runs);
  return page;
}

}  // namespace longspan::launcher
