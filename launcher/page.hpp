/// One HTML file with facts, tables and charts that needs nothing else: no network, no other file.
/// It forbids itself every request (Content-Security-Policy), follows light and dark, fits a phone
/// and prints. `longspan report` and `longspan scale` write one. Every text may be hostile: names
/// and notes come from files.
///
/// Charts are drawn in the browser with D3 (d3js.org, found by CMake, embedded in this program), by
/// page.js, styled by page.css. A build without D3 makes the same page without the drawings: under
/// every chart stands a table of its numbers, which is then open, and the page says why. Read next:
/// page_chart.cpp.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace longspan::launcher {

struct Series {
  std::string name;
  std::vector<double> x;  ///< ascending for lines; empty in charts of bars
  std::vector<double> y;  ///< as long as x, or one for each category; what is not finite is a gap
  std::vector<double> low = {}, high = {};  ///< error bars, as long as y; empty = none
  enum class Style {
    kLine,
    kPoints,
    kLineAndPoints,
    kIdeal
  } style = Style::kLine;                ///< kIdeal: thin, dashed, grey
  std::vector<std::string> labels = {};  ///< of points, as long as y: shown beside the pointer
};

/// Titles name the unit: "memory per rank, GiB".
struct Chart {
  std::string title;
  std::string caption = {};  ///< what is to be seen, one or two sentences
  std::string x_title = {}, y_title = {};
  bool x_log = false,
       y_log = false;        ///< what is not above 0 is not drawn; the caption then says so
  bool y_from_zero = false;  ///< of a y axis that is not logarithmic
  std::vector<Series> series;
  /// Not empty: horizontal bars, one for each category, of the series, stacked or (grouped) side by
  /// side. Logarithmic axes, x and styles do not apply.
  std::vector<std::string> categories = {};
  bool grouped = false;
  struct Mark {
    double x;
    std::string text;
  };
  std::vector<Mark> marks = {};  ///< upright lines: restarts, say
};

struct PageTable {
  std::string caption;
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
  std::size_t text_columns = 1;  ///< so many from the left are flush left, the others are numbers
};

class Page {
 public:
  explicit Page(std::string title, std::string subtitle = "");
  /// In the order in which they appear.
  void section(const std::string& title, const std::string& text = "");
  void paragraph(const std::string& text);
  void warning(const std::string& text);
  void facts(const std::string& caption,
             const std::vector<std::pair<std::string, std::string>>& rows);
  void table(const PageTable& table);
  void folded_table(const PageTable& table);  ///< only its caption is seen until it is opened
  /// Lines of more than kMostPoints points are thinned out: the mean of every span of x, with a
  /// band from its lowest to its highest value, and the caption says so. Throws
  /// std::invalid_argument if the lengths do not match.
  void chart(Chart chart);
  std::string html() const;

  static constexpr std::size_t kMostPoints = 1000;
  static constexpr std::size_t kSpans = 500;

 private:
  std::string title_, subtitle_, body_;
  int charts_ = 0;
};

/// Whether this program has D3 in it.
bool page_has_charts();
/// Replaces what HTML gives a meaning.
std::string html_text(const std::string& text);
/// Throws Error. The file appears whole or not at all.
void write_page(const std::string& path, const Page& page);

}  // namespace longspan::launcher
