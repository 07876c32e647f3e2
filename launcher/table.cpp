#include "launcher/table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <utility>

namespace longspan::launcher {
namespace {

/// Columns on a terminal: code points, which is right for everything we print; colours
/// (terminal_style.hpp: ESC [ ... m) take none.
std::size_t width_of(const std::string& text) {
  std::size_t width = 0;
  bool escape = false;
  for (const char c : text) {
    escape = escape || c == '\033';
    if (!escape && (c & 0xc0) != 0x80) ++width;
    if (c == 'm') escape = false;
  }
  return width;
}

}  // namespace

Table::Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

void Table::add(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::text(int indent) const {
  std::vector<std::size_t> widths(columns_.size(), 0);
  for (const auto& row : rows_)
    for (std::size_t c = 0; c < columns_.size(); ++c)
      widths[c] = std::max(widths[c], width_of(row[c]));
  bool titled = false;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    if (widths[c] == 0) continue;
    titled = titled || !columns_[c].title.empty();
    widths[c] = std::max(widths[c], width_of(columns_[c].title));
  }
  std::string out;
  const auto line = [&](const auto& cell_of) {
    std::string text(static_cast<std::size_t>(indent), ' ');
    bool first = true;
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      if (widths[c] == 0) continue;
      if (!first) text += "  ";
      first = false;
      const std::string& cell = cell_of(c);
      const std::string space(widths[c] - width_of(cell), ' ');
      text.append(columns_[c].align == Align::kLeft ? cell : space);
      text.append(columns_[c].align == Align::kLeft ? space : cell);
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out.append(text).append("\n");
  };
  if (titled) line([&](std::size_t c) -> const std::string& { return columns_[c].title; });
  for (const auto& row : rows_) line([&](std::size_t c) -> const std::string& { return row[c]; });
  return out;
}

std::string short_number(double value) {
  return fmt::format("{:.4g}", value);
}

std::string utc_text(std::int64_t unix_seconds) {
  const std::time_t time = unix_seconds;
  std::tm parts = {};
  ::gmtime_r(&time, &parts);
  char text[32];
  return std::string(text, std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts));
}

}  // namespace longspan::launcher
