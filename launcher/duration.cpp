#include "launcher/duration.hpp"

#include <fmt/format.h>

#include <array>
#include <charconv>

namespace longspan::launcher {
namespace {

constexpr std::int64_t kDay = 24 * 60 * 60;
constexpr std::int64_t kLongest = 10000 * kDay;

/// All of `text` as digits; nothing otherwise.
std::optional<std::int64_t> number(std::string_view text) {
  std::int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || text[0] == '-' || error != std::errc() || rest != end || value > kLongest)
    return std::nullopt;
  return value;
}

/// "H:MM:SS"
std::optional<std::int64_t> clock(std::string_view text) {
  std::array<std::int64_t, 3> parts = {};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto colon = i + 1 < parts.size() ? text.find(':') : text.size();
    if (colon == std::string_view::npos) return std::nullopt;
    const auto value = number(text.substr(0, colon));
    if (!value || (i > 0 && (*value >= 60 || colon != 2))) return std::nullopt;
    parts[i] = *value;
    text.remove_prefix(colon == text.size() ? colon : colon + 1);
  }
  return (parts[0] * 60 + parts[1]) * 60 + parts[2];
}

std::optional<std::int64_t> seconds_of(std::string_view text) {
  if (text.find(':') != std::string_view::npos) {
    const auto dash = text.find('-');
    if (dash == std::string_view::npos) return clock(text);
    const auto days = number(text.substr(0, dash));
    const auto rest = clock(text.substr(dash + 1));
    if (!days || !rest || *rest >= kDay) return std::nullopt;
    return *days * kDay + *rest;
  }
  std::int64_t unit = 1;
  if (!text.empty()) switch (text.back()) {
      case 'd':
        unit = kDay;
        break;
      case 'h':
        unit = 3600;
        break;
      case 'm':
        unit = 60;
        break;
      case 's':
        break;
      default:
        unit = 0;
    }
  const auto value = number(unit == 0 ? text : text.substr(0, text.empty() ? 0 : text.size() - 1));
  if (!value) return std::nullopt;
  return *value * (unit == 0 ? 1 : unit);
}

}  // namespace

std::optional<Duration> parse_duration(std::string_view text) {
  const auto seconds = seconds_of(text);
  if (!seconds || *seconds > kLongest) return std::nullopt;
  return Duration{*seconds};
}

std::string text_of(Duration duration) {
  const std::int64_t s = duration.seconds;
  if (s == 0) return "0";
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

}  // namespace longspan::launcher
