/// Aligned columns for the terminal, and numbers as people read them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longspan::launcher {

/// Collects rows, then knows the widths. Columns are two spaces apart; a column whose cells are all
/// empty is left out.
class Table {
 public:
  enum class Align { kLeft, kRight };
  struct Column {
    std::string title;  ///< titles of "" on all columns: no title line
    Align align = Align::kRight;
  };
  explicit Table(std::vector<Column> columns);
  void add(std::vector<std::string> cells);  ///< missing cells are empty
  bool empty() const { return rows_.empty(); }
  /// Every line ends in '\n' and starts with `indent` spaces; no trailing spaces.
  std::string text(int indent = 0) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

std::string short_number(double value);  ///< four significant digits: "0.01998", "-3.2e-05", "12"
std::string utc_text(std::int64_t unix_seconds);  ///< "2025-01-31 14:03:59 UTC"

}  // namespace longspan::launcher
