/// A length of time as a setting: "0", "90", "90s", "45m", "2h", "3d", "1:30:00" or, as Slurm
/// writes it, "2-00:00:00".
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace longspan::launcher {

struct Duration {
  std::int64_t seconds = 0;  ///< 0 or more
  bool operator==(const Duration&) const = default;
};

/// Nothing if `text` is none of the forms above, or more than 10000 days. Minutes and seconds
/// behind a colon are below 60; "1:30" is refused: it could be either.
std::optional<Duration> parse_duration(std::string_view text);
/// "0", "0:00:09", "1:30:00", "48:00:00": parse_duration reads it back.
std::string text_of(Duration duration);

inline double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace longspan::launcher
