#include "launcher/text.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

namespace longspan::launcher {

std::size_t terminal_width() {
  constexpr std::size_t kNarrowest = 60, kUsual = 100;
  if (const char* columns = std::getenv("COLUMNS"))
    if (const long value = std::strtol(columns, nullptr, 10); value > 0)
      return std::max(kNarrowest, static_cast<std::size_t>(value));
  winsize size = {};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
    return std::max<std::size_t>(kNarrowest, size.ws_col);
  return kUsual;
}

std::vector<std::string> wrap(const std::string& text, std::size_t width) {
  std::vector<std::string> lines(1);
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (!lines.back().empty() && lines.back().size() + 1 + word.size() > width)
      lines.emplace_back();
    if (!lines.back().empty()) lines.back() += ' ';
    // A list of choices that is longer than a line goes on after one of them.
    for (std::size_t cut; word.size() > width && (cut = word.rfind('|', width - 1)) != word.npos;) {
      lines.back() += word.substr(0, cut + 1);
      lines.emplace_back();
      word.erase(0, cut + 1);
    }
    lines.back() += word;
  }
  return lines;
}

}  // namespace longspan::launcher
