#include "launcher/terminal_style.hpp"

#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace longspan::launcher {

Style Style::of(std::FILE* out) {
  const char* const refused = std::getenv("NO_COLOR");
  const char* const terminal = std::getenv("TERM");
  if (refused != nullptr && *refused != '\0') return Style();
  if (terminal != nullptr && std::string_view(terminal) == "dumb") return Style();
  return Style(::isatty(::fileno(out)) == 1);
}

std::string Style::wrapped(const char* code, const std::string& text) const {
  if (!coloured_ || text.empty()) return text;
  return std::string("\033[") + code + "m" + text + "\033[0m";
}

}  // namespace longspan::launcher
