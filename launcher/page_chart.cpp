/// Charts as data: thinned out, as JSON for page.js, and as a table.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "launcher/page_parts.hpp"
#include "launcher/progress.hpp"
#include "launcher/table.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kGap = std::numeric_limits<double>::quiet_NaN();
constexpr std::size_t kTableRows = 40;

bool is_line(const Series& s) {
  return s.style == Series::Style::kLine || s.style == Series::Style::kLineAndPoints;
}

/// One point for each of kSpans equal spans of the axis: the mean, and from the lowest to the
/// highest. A span without a finite value is a gap, unless it has no values at all.
Series thinned(const Series& all, bool x_log) {
  const auto place = [&](double x) { return x_log ? std::log(x) : x; };
  const double first = place(all.x.front()), width = place(all.x.back()) - first;
  Series thin{.name = all.name, .x = {}, .y = {}, .style = Series::Style::kLine};
  const std::size_t size = all.x.size();
  for (std::size_t i = 0; i < size;) {
    const auto span_of = [&](std::size_t k) {
      return std::min<std::size_t>(
          Page::kSpans - 1, static_cast<std::size_t>(
                                std::max(0.0, (place(all.x[k]) - first) / width * Page::kSpans)));
    };
    const std::size_t span = span_of(i);
    double sum = 0, sum_x = 0, low = kGap, high = kGap;
    std::size_t count = 0, finite = 0;
    for (; i < size && span_of(i) == span; ++i, ++count) {
      sum_x += all.x[i];
      if (!std::isfinite(all.y[i])) continue;
      ++finite;
      sum += all.y[i];
      low = std::fmin(low, all.y[i]);
      high = std::fmax(high, all.y[i]);
    }
    thin.x.push_back(sum_x / static_cast<double>(count));
    thin.y.push_back(finite ? sum / static_cast<double>(finite) : kGap);
    thin.low.push_back(low);
    thin.high.push_back(high);
  }
  return thin;
}

/// Short, and null where there is no number: pages stay small.
Json numbers(const std::vector<double>& values) {
  Json list = Json::array();
  for (const double v : values)
    list.push_back(std::isfinite(v) ? Json(std::strtod(fmt::format("{:.8g}", v).c_str(), nullptr))
                                    : Json(nullptr));
  return list;
}

/// Later lines hide earlier ones that run where they do: that is said, it may be the point.
std::vector<std::string> hidden_lines(const Chart& chart) {
  constexpr double kSame = 0.003;  // of the height of the chart: less than a line's width
  double low = kGap, high = kGap;
  for (const Series& s : chart.series)
    for (const double v : s.y)
      if (std::isfinite(v)) low = std::fmin(low, v), high = std::fmax(high, v);
  const auto covers = [&](const Series& upper, const Series& lower) {
    if (!is_line(upper) || !is_line(lower) || lower.x != upper.x || lower.x.empty()) return false;
    for (std::size_t i = 0; i < lower.y.size(); ++i) {
      const bool both = std::isfinite(lower.y[i]) && std::isfinite(upper.y[i]);
      if (both ? std::abs(lower.y[i] - upper.y[i]) > kSame * (high - low)
               : std::isfinite(lower.y[i]))
        return false;
    }
    return true;
  };
  std::vector<std::string> hidden;
  for (std::size_t i = 0; i < chart.series.size(); ++i)
    for (std::size_t k = chart.series.size() - 1; k > i; --k)
      if (covers(chart.series[k], chart.series[i])) {
        hidden.push_back(chart.series[i].name + " lies under " + chart.series[k].name);
        break;
      }
  return hidden;
}

const char* style_name(Series::Style style) {
  switch (style) {
    case Series::Style::kPoints:
      return "points";
    case Series::Style::kLineAndPoints:
      return "both";
    case Series::Style::kIdeal:
      return "ideal";
    case Series::Style::kLine:
      break;
  }
  return "line";
}

std::string cell(double value) {
  return std::isfinite(value) ? short_number(value) : "";
}

PageTable table_of_bars(const Chart& chart) {
  PageTable table{.caption = chart.title, .columns = {""}, .rows = {}};
  for (const Series& s : chart.series) table.columns.push_back(s.name);
  const bool sums = !chart.grouped && chart.series.size() > 1;
  if (sums) table.columns.emplace_back("sum");
  for (std::size_t c = 0; c < chart.categories.size(); ++c) {
    std::vector<std::string> row = {chart.categories[c]};
    double sum = 0;
    for (const Series& s : chart.series) {
      row.push_back(cell(s.y[c]));
      if (std::isfinite(s.y[c])) sum += s.y[c];
    }
    if (sums) row.push_back(cell(sum));
    table.rows.push_back(std::move(row));
  }
  return table;
}

PageTable table_of_points(const Chart& chart) {
  PageTable table{.caption = chart.title, .columns = {chart.x_title}, .rows = {}};
  std::vector<double> places;
  for (const Series& s : chart.series) {
    table.columns.push_back(s.name.empty() ? chart.y_title : s.name);
    places.insert(places.end(), s.x.begin(), s.x.end());
  }
  std::sort(places.begin(), places.end());
  places.erase(std::unique(places.begin(), places.end()), places.end());
  for (const double x : places) {
    std::vector<std::string> row = {cell(x)};
    for (const Series& s : chart.series) {
      std::string text;
      for (std::size_t i = 0; i < s.x.size(); ++i) {
        if (s.x[i] != x || !std::isfinite(s.y[i])) continue;
        if (!text.empty()) text += ", ";
        text += cell(s.y[i]);
        if (!s.low.empty()) text += fmt::format(" ({} to {})", cell(s.low[i]), cell(s.high[i]));
        if (!s.labels.empty()) text += " " + s.labels[i];
      }
      row.push_back(std::move(text));
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

PageTable table_of_extremes(const Chart& chart) {
  PageTable table{
      .caption = chart.title, .columns = {"", "first", "last", "lowest", "highest"}, .rows = {}};
  for (const Series& s : chart.series) {
    double first = kGap, last = kGap, low = kGap, high = kGap;
    for (std::size_t i = 0; i < s.y.size(); ++i) {
      if (!std::isfinite(s.y[i])) continue;
      if (std::isnan(first)) first = s.y[i];
      last = s.y[i];
      low = std::fmin(low, s.low.empty() ? s.y[i] : s.low[i]);
      high = std::fmax(high, s.high.empty() ? s.y[i] : s.high[i]);
    }
    table.rows.push_back(
        {s.name.empty() ? chart.y_title : s.name, cell(first), cell(last), cell(low), cell(high)});
  }
  return table;
}

}  // namespace

void check_chart(const Chart& chart) {
  for (const Series& s : chart.series) {
    const std::size_t points = chart.categories.empty() ? s.x.size() : chart.categories.size();
    const auto fits = [&](std::size_t size) { return size == 0 || size == points; };
    if (s.y.size() != points || s.low.size() != s.high.size() || !fits(s.low.size()) ||
        !fits(s.labels.size()))
      throw std::invalid_argument(fmt::format(
          "chart '{}', series '{}': {} places, {} values, {} and {} error bars, {} "
          "labels",
          chart.title, s.name, points, s.y.size(), s.low.size(), s.high.size(), s.labels.size()));
  }
}

void thin_out(Chart& chart) {
  if (!chart.categories.empty()) return;
  const auto say = [&](const std::string& text) {
    if (!chart.caption.empty()) chart.caption += ' ';
    chart.caption += text;
  };
  std::size_t left_out = 0, most = 0;
  for (Series& s : chart.series) {
    // A logarithm has no place for the rest.
    const auto drawable = [&](std::size_t i) {
      return (!chart.x_log || s.x[i] > 0) && (!chart.y_log || !std::isfinite(s.y[i]) || s.y[i] > 0);
    };
    for (std::size_t i = 0; i < s.y.size(); ++i) {
      if (drawable(i)) continue;
      ++left_out;
      s.y[i] = kGap;
      if (chart.x_log && !(s.x[i] > 0)) s.x[i] = kGap;
    }
    const bool ascending = std::is_sorted(s.x.begin(), s.x.end()) && !s.x.empty() &&
                           std::isfinite(s.x.front()) && s.x.front() < s.x.back();
    if (!is_line(s) || s.x.size() <= Page::kMostPoints || !ascending || !s.low.empty()) continue;
    most = std::max(most, s.x.size());
    s = thinned(s, chart.x_log);
  }
  if (most > 0)
    say(fmt::format(
        "Line: means over {} equal spans (up to {} points a line); band: from the lowest "
        "to the highest of each.",
        Page::kSpans, grouped(static_cast<std::int64_t>(most))));
  if (const auto hidden = hidden_lines(chart); !hidden.empty())
    say(fmt::format("{}.", fmt::join(hidden, ", ")));
  if (left_out > 0)
    say(fmt::format("{} not above 0 {} no place on a logarithmic axis.",
                    left_out == 1 ? "One point" : fmt::format("{} points", left_out),
                    left_out == 1 ? "has" : "have"));
}

std::string chart_json(const Chart& chart) {
  Json data = {{"title", chart.title},     {"xTitle", chart.x_title},
               {"yTitle", chart.y_title},  {"xLog", chart.x_log},
               {"yLog", chart.y_log},      {"yFromZero", chart.y_from_zero},
               {"grouped", chart.grouped}, {"categories", chart.categories}};
  data["marks"] = Json::array();
  for (const Chart::Mark& mark : chart.marks)
    data["marks"].push_back({{"x", mark.x}, {"text", mark.text}});
  data["series"] = Json::array();
  for (const Series& s : chart.series) {
    Json one = {
        {"name", s.name}, {"style", style_name(s.style)}, {"x", numbers(s.x)}, {"y", numbers(s.y)}};
    if (!s.low.empty()) {
      one["low"] = numbers(s.low);
      one["high"] = numbers(s.high);
    }
    if (!s.labels.empty()) one["labels"] = s.labels;
    data["series"].push_back(std::move(one));
  }
  // Nothing in a script element may look like its end or like a comment.
  std::string text = data.dump(-1, ' ', false, Json::error_handler_t::replace), safe;
  for (const char c : text) {
    if (c == '<')
      safe += "\\u003c";
    else
      safe += c;
  }
  return safe;
}

PageTable chart_table(const Chart& chart) {
  if (!chart.categories.empty()) return table_of_bars(chart);
  std::size_t points = 0;
  for (const Series& s : chart.series) points = std::max(points, s.x.size());
  return points <= kTableRows ? table_of_points(chart) : table_of_extremes(chart);
}

}  // namespace longspan::launcher
