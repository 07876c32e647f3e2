#include "launcher/study_page.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "launcher/options.hpp"
#include "launcher/study_table.hpp"

namespace longspan::launcher {
namespace {

using Rows = std::vector<const PointResult*>;

std::string shown(double value, const char* format = "{:.4g}") {
  return std::isnan(value) ? "" : fmt::format(fmt::runtime(format), value);
}

double mib(double bytes) {
  return bytes / 1048576;
}

std::string short_name(const PointResult& row) {
  const StudyPoint& p = row.point;
  return fmt::format("{}{} {}", mesh_text(p.mesh), p.scheme_matters() ? " " + scheme_text(p) : "",
                     p.length);
}

/// Points of a series that are done, by their ranks.
Rows of_series(const std::vector<PointResult>& rows, std::size_t series) {
  Rows found;
  for (const PointResult& row : rows) {
    const auto& all = row.point.series;
    if (row.done > 0 && std::find(all.begin(), all.end(), static_cast<int>(series)) != all.end())
      found.push_back(&row);
  }
  std::stable_sort(found.begin(), found.end(), [](const PointResult* a, const PointResult* b) {
    return a->point.ranks() < b->point.ranks();
  });
  return found;
}

/// A line for each series over the ranks. `value` of a point; low and high where there are repeats.
Chart over_ranks(const Study& study, const std::vector<PointResult>& rows,
                 double (*value)(const PointResult&), bool with_spread) {
  Chart chart;
  chart.x_title = "ranks";
  for (std::size_t s = 0; s < study.series.size(); ++s) {
    Series line;
    line.name = study.series[s];
    line.style = Series::Style::kLineAndPoints;
    for (const PointResult* row : of_series(rows, s)) {
      const double y = value(*row);
      line.x.push_back(row->point.ranks());
      line.y.push_back(y);
      line.labels.push_back(row->point.name);
      if (!with_spread) continue;
      // Seconds that are more are a value that is less.
      line.low.push_back(y * row->median.seconds / row->seconds_max);
      line.high.push_back(y * row->median.seconds / row->seconds_min);
    }
    // Several meshes of as many ranks are no line.
    if (std::adjacent_find(line.x.begin(), line.x.end()) != line.x.end())
      line.style = Series::Style::kPoints;
    if (!line.x.empty()) chart.series.push_back(std::move(line));
  }
  return chart;
}

void add_scaling(Page& page, const StudySpec& spec, const Study& study,
                 const std::vector<PointResult>& rows) {
  Chart speedup = over_ranks(
      study, rows, [](const PointResult& r) { return r.speedup; }, true);
  std::set<double> ranks;
  double smallest = 0;
  for (const PointResult& row : rows)
    if (row.done > 0) {
      ranks.insert(row.point.ranks());
      const double base = row.point.ranks() / row.ideal;
      smallest = smallest == 0 ? base : std::min(smallest, base);
    }
  Series ideal;
  ideal.name = "ideal", ideal.style = Series::Style::kIdeal;
  for (const double n : ranks) ideal.x.push_back(n), ideal.y.push_back(n / smallest);
  speedup.series.push_back(std::move(ideal));
  speedup.title = "speed-up";
  speedup.y_title = "tokens/s over those of the smallest point";
  speedup.x_log = speedup.y_log = true;
  speedup.caption =
      "Each series against its own smallest point. Bars: the fastest and the slowest run.";
  page.chart(std::move(speedup));

  Chart efficiency = over_ranks(
      study, rows, [](const PointResult& r) { return 100 * r.efficiency; }, true);
  Series hundred;
  hundred.name = "ideal", hundred.style = Series::Style::kIdeal;
  for (const double n : ranks) hundred.x.push_back(n), hundred.y.push_back(100);
  efficiency.series.push_back(std::move(hundred));
  efficiency.title = "efficiency, %";
  efficiency.y_title = "speed-up over ideal, %";
  efficiency.x_log = true, efficiency.y_from_zero = true;
  page.chart(std::move(efficiency));
  if (spec.scaling == Scaling::kWeakLength) {
    Chart flops = over_ranks(
        study, rows, [](const PointResult& r) { return 100 * r.flop_efficiency; }, true);
    flops.title = "efficiency in FLOPs, %";
    flops.y_title = "model FLOPs/s of a rank over those of the smallest point, %";
    flops.x_log = true, flops.y_from_zero = true;
    flops.caption = "A token of a longer sequence takes more FLOPs: here that does not count.";
    page.chart(std::move(flops));
  }
}

/// Bars, one for each point that is done.
struct Bars {
  Chart chart;
  Rows rows;
  Bars(std::string title, std::string y_title, const std::vector<PointResult>& all, bool grouped) {
    chart.title = std::move(title), chart.x_title = std::move(y_title), chart.grouped = grouped;
    for (const PointResult& row : all)
      if (row.done > 0) {
        rows.push_back(&row);
        chart.categories.push_back(short_name(row));
      }
  }
  template <class Value>
  void add(const std::string& name, Value&& value) {
    Series series;
    series.name = name;
    for (const PointResult* row : rows) series.y.push_back(value(row->median));
    // What is 0 or not known everywhere would only fill the legend.
    if (std::any_of(series.y.begin(), series.y.end(), [](double y) { return y > 0; }))
      chart.series.push_back(std::move(series));
  }
  void show(Page& page, const std::string& caption, const std::string& nothing) {
    chart.caption = caption;
    if (chart.series.empty()) return page.paragraph(nothing);
    page.chart(std::move(chart));
  }
};

using N = const RunNumbers&;

void add_parts(Page& page, const std::vector<PointResult>& rows) {
  page.section("Where the time of a step goes");
  Bars parts("seconds of a step by part", "seconds", rows, false);
  parts.add("matrix products", [](N n) { return n.linear; });
  parts.add("attention", [](N n) { return n.attention; });
  parts.add("other operations", [](N n) { return n.other_kernels; });
  parts.add("exposed: context", [](N n) { return n.context_exposed; });
  parts.add("exposed: tensor", [](N n) { return n.tensor_exposed; });
  parts.add("exposed: gradients", [](N n) { return n.gradient_exposed; });
  parts.add("waiting for data", [](N n) { return n.data_wait; });
  parts.add("everything else", [](N n) { return n.rest; });
  parts.show(
      page,
      "Rank 0, mean of the steps without the first. Exposed: communication that nothing hid. "
      "Everything else is the program itself and waiting for slower ranks.",
      "No run has left a profile.");
}

void add_memory(Page& page, const std::vector<PointResult>& rows) {
  page.section("Memory");
  Bars memory("memory of the worst rank, MiB", "MiB", rows, true);
  memory.add("predicted", [](N n) { return mib(n.memory_predicted); });
  memory.add("allocated", [](N n) { return mib(n.memory_allocated); });
  memory.add("resident", [](N n) { return mib(n.memory_resident); });
  memory.show(page, "Predicted and allocated: arrays. Resident: the whole process, at its peak.",
              "No run has told its memory.");
}

void add_bytes(Page& page, const std::vector<PointResult>& rows) {
  page.section("Bytes on links");
  Bars bytes("sent by a rank in a step, MiB", "MiB", rows, true);
  bytes.add("context, formula", [](N n) { return mib(n.formula_context); });
  bytes.add("context, sent", [](N n) { return mib(n.sent_context); });
  bytes.add("tensor, formula", [](N n) { return mib(n.formula_tensor); });
  bytes.add("tensor, sent", [](N n) { return mib(n.sent_tensor); });
  bytes.add("gradients, formula", [](N n) { return mib(n.formula_gradients); });
  bytes.add("gradients, sent", [](N n) { return mib(n.sent_gradients); });
  bytes.show(page, "The rank that sends most.", "No point sends anything: one rank has no links.");
}

void add_prediction(Page& page, const std::vector<PointResult>& rows) {
  page.section("Predicted and measured");
  Bars time("seconds of a step", "seconds", rows, true);
  time.add("predicted", [](N n) { return n.predicted_seconds; });
  time.add("measured", [](N n) { return n.seconds; });
  const bool predicted = std::any_of(rows.begin(), rows.end(), [](const PointResult& r) {
    return !std::isnan(r.median.predicted_seconds);
  });
  std::set<std::string> calibrations;
  for (const PointResult& row : rows)
    if (!row.calibration.empty()) calibrations.insert(row.calibration);
  for (const std::string& calibration : calibrations)
    page.paragraph((predicted ? "Predicted from " : "Not predicted: ") + calibration);
  time.show(page, "", "No point is done.");
}

void add_tables(Page& page, const Study& study, const std::vector<PointResult>& rows) {
  page.section("Every point");
  PageTable results{"results",
                    {"point", "state", "ranks", "nodes", "s/step", "min", "max", "tokens/s",
                     "speed-up", "ideal", "efficiency", "MFU"},
                    {},
                    2};
  PageTable where{"configuration and hardware",
                  {"point", "mesh (data x context x tensor)", "scheme", "host", "processor",
                   "tokens", "batch", "ranks", "threads a rank"},
                  {},
                  5};
  for (const PointResult& r : rows) {
    const StudyPoint& p = r.point;
    results.rows.push_back({p.name, r.state, std::to_string(p.ranks()), std::to_string(p.nodes),
                            shown(r.median.seconds), shown(r.seconds_min), shown(r.seconds_max),
                            shown(r.median.tokens_per_second, "{:.5g}"), shown(r.speedup, "{:.3f}"),
                            shown(r.ideal), shown(100 * r.efficiency, "{:.1f} %"),
                            shown(100 * r.median.mfu, "{:.1f} %")});
    where.rows.push_back({p.name, mesh_text(p.mesh), scheme_text(p), r.host, r.processor,
                          std::to_string(p.length), std::to_string(p.batch),
                          std::to_string(p.ranks()), shown(r.median.threads)});
  }
  page.table(results);
  page.table(where);
  PageTable failed{"what failed", {"point", "why"}, {}, 2};
  for (const PointResult& r : rows)
    if (!r.error.empty()) failed.rows.push_back({r.point.name, r.error});
  if (!failed.rows.empty()) page.table(failed);
  PageTable left{"left out", {"point", "why"}, {}, 2};
  for (const LeftOut& l : study.left_out) left.rows.push_back({l.name, l.why});
  if (!left.rows.empty()) page.table(left);
}

}  // namespace

Page study_page(const std::string& name, const StudySpec& spec, const Study& study,
                const std::vector<PointResult>& rows) {
  const auto done = std::count_if(rows.begin(), rows.end(),
                                  [](const PointResult& row) { return row.state == "done"; });
  Page page("Scaling study " + name,
            fmt::format("{} scaling, {} of {} points done, {} run{} of {} steps each, the first {} "
                        "not counted",
                        scaling_text(spec.scaling), done, rows.size(), spec.repeats,
                        spec.repeats == 1 ? "" : "s", spec.steps, spec.warmup));
  const auto broken = [](const PointResult& row) { return !row.error.empty(); };
  if (const auto first = std::find_if(rows.begin(), rows.end(), broken); first != rows.end()) {
    const auto others = std::count_if(first + 1, rows.end(), broken);
    page.warning(fmt::format("{} failed: {}{}", first->point.name, first->error,
                             others == 0 ? ""
                                         : fmt::format(" (and {} other point{}: see what failed "
                                                       "under Every point)",
                                                       others, others == 1 ? "" : "s")));
  }
  const bool any =
      std::any_of(rows.begin(), rows.end(), [](const PointResult& row) { return row.done > 0; });
  if (any) {
    page.section("Scaling");
    add_scaling(page, spec, study, rows);
    add_parts(page, rows);
    add_memory(page, rows);
    add_bytes(page, rows);
    add_prediction(page, rows);
  } else {
    page.paragraph("No point is done yet.");
  }
  add_tables(page, study, rows);
  page.section("Configuration of all points",
               "What differs from the defaults. Mesh, scheme, length and batch are each point's.");
  std::vector<std::pair<std::string, std::string>> settings;
  for (const OptionDescription& o : describe_options(spec.config))
    if (o.value != o.default_value) settings.emplace_back(o.name, o.value);
  page.facts("settings", settings);
  return page;
}

}  // namespace longspan::launcher
