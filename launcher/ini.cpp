#include "launcher/ini.hpp"

#include <fmt/format.h>

#include <optional>
#include <sstream>
#include <string_view>

#include "launcher/options.hpp"

namespace longspan::launcher {
namespace {

constexpr std::string_view kSpace = " \t\r";

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

bool starts_comment(char c) { return c == '#' || c == ';'; }

/// Up to a '#' or ';' that begins the text or follows a space.
std::string_view without_comment(std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i)
    if (starts_comment(text[i]) && (i == 0 || kSpace.find(text[i - 1]) != std::string_view::npos)) return text.substr(0, i);
  return text;
}

/// The text between the quotes; `text` begins with the first one. Nothing if the second is missing or something follows it.
std::optional<std::string> unquoted(std::string_view text) {
  std::string value;
  for (std::size_t i = 1; i < text.size(); ++i) {
    if (text[i] == '"') {
      if (trimmed(without_comment(trimmed(text.substr(i + 1)))).empty()) return value;
      return std::nullopt;
    }
    if (text[i] == '\\' && i + 1 < text.size()) {
      const char c = text[++i];
      value += c == 'n' ? '\n' : c == 'r' ? '\r' : c;
    } else {
      value += text[i];
    }
  }
  return std::nullopt;
}

}  // namespace

std::vector<IniEntry> parse_ini_lines(const std::string& text, const std::string& source,
                                      std::vector<std::string>& problems) {
  std::vector<IniEntry> entries;
  std::istringstream lines(text);
  std::string section, raw;
  bool in_section = false;
  for (int number = 1; std::getline(lines, raw); ++number) {
    if (number == 1 && raw.rfind("\xEF\xBB\xBF", 0) == 0) raw.erase(0, 3);  // byte order mark
    const std::string_view line = trimmed(raw);
    if (line.empty() || starts_comment(line[0])) continue;
    const auto complain = [&](std::string_view what) {
      problems.push_back(fmt::format("{}:{}: '{}': {}", source, number, line, what));
    };
    if (line[0] == '[') {
      const std::size_t close = line.find(']');
      in_section = close != std::string_view::npos && trimmed(without_comment(trimmed(line.substr(close + 1)))).empty();
      if (in_section)
        section = trimmed(line.substr(1, close - 1));
      else
        complain("a section is written [name]");
      continue;
    }
    const std::size_t equals = line.find('=');
    const std::string key(trimmed(line.substr(0, equals)));
    if (equals == std::string_view::npos || key.empty()) {
      complain("a setting is written key = value");
      continue;
    }
    // Keys before any section may name it themselves: model.layers = 4.
    if (!in_section && key.find('.') == std::string::npos) {
      complain("it stands in no section: write [section] above it");
      continue;
    }
    const std::string_view rest = trimmed(line.substr(equals + 1));
    std::string value(trimmed(without_comment(rest)));
    if (!rest.empty() && rest[0] == '"') {
      const auto quoted = unquoted(rest);
      if (!quoted) {
        complain("a value in quotes ends with a quote, and only a comment may follow");
        continue;
      }
      value = *quoted;
    }
    entries.push_back({in_section ? section + "." + key : key, value, number});
  }
  return entries;
}

std::string ini_value(const std::string& value) {
  const bool plain = value.find_first_of("#;\"\\\n\r") == std::string::npos && trimmed(value).size() == value.size();
  if (plain) return value;
  std::string quoted = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c == '\n' ? "\\n" : c == '\r' ? "\\r" : std::string(1, c);
  }
  return quoted + "\"";
}

}  // namespace longspan::launcher
