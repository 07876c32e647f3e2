#include "launcher/study_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "io/hdf5.hpp"
#include "launcher/table.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::ordered_json;
using Row = const PointResult&;
using S = const Study&;

std::vector<StudyColumn> make_columns() {
  std::vector<StudyColumn> columns = {
      {"point", "", "its name, and that of its folder under runs/",
       [](S, Row r) { return Cell(r.point.name); }, nullptr},
      {"series", "", "points that differ in their ranks only",
       [](S s, Row r) { return Cell(s.series[static_cast<std::size_t>(r.point.series.front())]); },
       nullptr},
      {"state", "", "done, failed, incomplete, running, waiting or not run",
       [](S, Row r) { return Cell(r.state); }, nullptr},
      {"error", "", "the first line of what went wrong", [](S, Row r) { return Cell(r.error); },
       nullptr},
      {"ranks", "", "processes", [](S, Row r) { return Cell(std::int64_t{r.point.ranks()}); },
       nullptr},
      {"nodes", "", "of these ranks", [](S, Row r) { return Cell(std::int64_t{r.point.nodes}); },
       nullptr},
      {"mesh_data", "", "ranks that share the batch",
       [](S, Row r) { return Cell(std::int64_t{r.point.mesh.data}); }, nullptr},
      {"mesh_context", "", "ranks that share a sequence",
       [](S, Row r) { return Cell(std::int64_t{r.point.mesh.context}); }, nullptr},
      {"mesh_tensor", "", "ranks that share the weights",
       [](S, Row r) { return Cell(std::int64_t{r.point.mesh.tensor}); }, nullptr},
      {"scheme", "", "attention.scheme; - where no sequence is shared",
       [](S, Row r) { return Cell(scheme_text(r.point)); }, nullptr},
      {"sequence_length", "tokens", "of a sequence", [](S, Row r) { return Cell(r.point.length); },
       nullptr},
      {"global_batch", "sequences", "of a step", [](S, Row r) { return Cell(r.point.batch); },
       nullptr},
      {"repeats_done", "", "runs that the medians are of", [](S, Row r) { return Cell(r.done); },
       nullptr},
      {"repeats_failed", "", "runs that failed", [](S, Row r) { return Cell(r.failed); }, nullptr}};
  for (const NumberField& field : number_fields())
    columns.push_back({field.name, field.unit, field.help, nullptr, &field});
  const std::vector<StudyColumn> last = {
      {"seconds_per_step_min", "s", "of the repeats", [](S, Row r) { return Cell(r.seconds_min); },
       nullptr},
      {"seconds_per_step_max", "s", "of the repeats", [](S, Row r) { return Cell(r.seconds_max); },
       nullptr},
      {"baseline", "", "the smallest point of the series",
       [](S, Row r) { return Cell(r.baseline); }, nullptr},
      {"speedup", "1", "tokens per second over those of the baseline",
       [](S, Row r) { return Cell(r.speedup); }, nullptr},
      {"speedup_ideal", "1", "ranks over those of the baseline",
       [](S, Row r) { return Cell(r.ideal); }, nullptr},
      {"efficiency", "1", "speedup / speedup_ideal", [](S, Row r) { return Cell(r.efficiency); },
       nullptr},
      {"flop_efficiency", "1", "the same with model FLOPs instead of tokens",
       [](S, Row r) { return Cell(r.flop_efficiency); }, nullptr},
      {"host", "", "of rank 0", [](S, Row r) { return Cell(r.host); }, nullptr},
      {"processor", "", "of rank 0", [](S, Row r) { return Cell(r.processor); }, nullptr},
      {"calibration", "", "what the prediction of the seconds is from, or why there is none",
       [](S, Row r) { return Cell(r.calibration); }, nullptr}};
  columns.insert(columns.end(), last.begin(), last.end());
  return columns;
}

std::string csv_quoted(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string quoted(1, '"');
  for (const char c : text) quoted.append(c == '"' ? 2 : 1, c);
  quoted.push_back('"');
  return quoted;
}

std::string csv_cell(const Cell& cell) {
  if (const auto* text = std::get_if<std::string>(&cell)) return csv_quoted(*text);
  if (const auto* whole = std::get_if<std::int64_t>(&cell)) return std::to_string(*whole);
  const double number = std::get<double>(cell);
  return std::isnan(number) ? "" : fmt::format("{}", number);
}

Json json_cell(const Cell& cell) {
  if (const auto* text = std::get_if<std::string>(&cell)) return *text;
  if (const auto* whole = std::get_if<std::int64_t>(&cell)) return *whole;
  const double number = std::get<double>(cell);
  return std::isfinite(number) ? Json(number) : Json(nullptr);
}

/// Empty if it is not known.
std::string shown(double value, const char* format) {
  return std::isnan(value) ? "" : fmt::format(fmt::runtime(format), value);
}

std::string mib(double bytes) {
  return shown(bytes / 1048576, "{:.1f}");
}

}  // namespace

const std::vector<StudyColumn>& study_columns() {
  static const std::vector<StudyColumn> columns = make_columns();
  return columns;
}

std::string study_csv(const Study& study, const std::vector<PointResult>& rows) {
  std::string text;
  for (const StudyColumn& column : study_columns())
    text += fmt::format("{}{}", text.empty() ? "" : ",", column.name);
  text += "\r\n";
  for (const PointResult& row : rows) {
    std::string line;
    for (const StudyColumn& column : study_columns())
      line += fmt::format("{}{}", &column == &study_columns().front() ? "" : ",",
                          csv_cell(column.cell(study, row)));
    text += line + "\r\n";
  }
  return text;
}

void write_study_hdf5(const std::string& path, const Study& study,
                      const std::vector<PointResult>& rows) {
  auto file = io::hdf5::File::create(path);
  const Shape shape = {static_cast<std::int64_t>(rows.size())};
  for (const StudyColumn& column : study_columns()) {
    std::vector<std::string> texts;
    std::vector<std::int64_t> wholes;
    std::vector<double> numbers;
    for (const PointResult& row : rows) {
      const Cell cell = column.cell(study, row);
      if (const auto* text = std::get_if<std::string>(&cell)) texts.push_back(*text);
      if (const auto* whole = std::get_if<std::int64_t>(&cell)) wholes.push_back(*whole);
      if (const auto* number = std::get_if<double>(&cell)) numbers.push_back(*number);
    }
    if (!texts.empty())
      file.write_strings(column.name, texts);
    else if (!wholes.empty())
      file.write(column.name, wholes);
    else
      file.write(column.name, DType::kF64, shape, numbers.data());
    file.set_attribute(column.name, "unit", column.unit);
    file.set_attribute(column.name, "help", column.help);
  }
  file.close();
}

std::string study_json(const StudySpec& spec, const Study& study,
                       const std::vector<PointResult>& rows) {
  Json points = Json::array(), left_out = Json::array();
  for (const PointResult& row : rows) {
    Json point;
    for (const StudyColumn& column : study_columns())
      point[column.name] = json_cell(column.cell(study, row));
    points.push_back(point);
  }
  for (const LeftOut& left : study.left_out)
    left_out.push_back({{"point", left.name}, {"why", left.why}});
  const Json report = {{"scaling", scaling_text(spec.scaling)},
                       {"steps", spec.steps},
                       {"warmup", spec.warmup},
                       {"repeats", spec.repeats},
                       {"points", points},
                       {"left_out", left_out}};
  return report.dump(2, ' ', false, Json::error_handler_t::replace);
}

std::string study_text(const StudySpec& spec, const Study& study,
                       const std::vector<PointResult>& rows) {
  using Align = Table::Align;
  std::string text =
      fmt::format("{} scaling, {} steps a run without the first {}, {} run{} a point\n",
                  scaling_text(spec.scaling), spec.steps - spec.warmup, spec.warmup, spec.repeats,
                  spec.repeats == 1 ? "" : "s");
  for (std::size_t s = 0; s < study.series.size(); ++s) {
    Table table({{"ranks"},
                 {"mesh", Align::kLeft},
                 {"scheme", Align::kLeft},
                 {"tokens"},
                 {"batch"},
                 {"s/step"},
                 {"min..max", Align::kLeft},
                 {"tokens/s"},
                 {"speed-up"},
                 {"of ideal"},
                 {"exposed"},
                 {"MiB"},
                 {"of predicted"},
                 {"sent MiB"},
                 {"of formula"},
                 {"predicted s"},
                 {"", Align::kLeft}});
    for (const PointResult& row : rows) {
      if (std::find(row.point.series.begin(), row.point.series.end(), static_cast<int>(s)) ==
          row.point.series.end())
        continue;
      const RunNumbers& n = row.median;
      const double sent = n.sent_context + n.sent_tensor + n.sent_gradients,
                   formula = n.formula_context + n.formula_tensor + n.formula_gradients,
                   exposed = n.context_exposed + n.tensor_exposed + n.gradient_exposed,
                   whole =
                       n.linear + n.attention + n.other_kernels + exposed + n.data_wait + n.rest;
      table.add(
          {std::to_string(row.point.ranks()), mesh_text(row.point.mesh), scheme_text(row.point),
           std::to_string(row.point.length), std::to_string(row.point.batch),
           shown(n.seconds, "{:.4g}"),
           row.done > 1 ? fmt::format("{:.4g}..{:.4g}", row.seconds_min, row.seconds_max) : "",
           shown(n.tokens_per_second, "{:.5g}"), shown(row.speedup, "{:.2f}"),
           shown(100 * row.efficiency, "{:.0f} %"), shown(100 * exposed / whole, "{:.1f} %"),
           mib(n.memory_allocated), shown(n.memory_allocated / n.memory_predicted, "{:.2f}"),
           mib(sent), formula > 0 ? shown(sent / formula, "{:.2f}") : "",
           shown(n.predicted_seconds, "{:.4g}"),
           row.state == "done" ? ""
           : row.error.empty() ? row.state
                               : row.state + ": " + row.error});
    }
    text += fmt::format("\n{}\n{}", study.series[s], table.text());
  }
  return text;
}

std::string left_out_text(const Study& study) {
  std::string text;
  for (const LeftOut& left : study.left_out)
    text += fmt::format("left out: {}: {}\n", left.name, left.why);
  return text;
}

}  // namespace longspan::launcher
