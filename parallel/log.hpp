/// Log lines: rank 0 to the terminal and to log.txt. Messages of other ranks are prefixed with the
/// rank.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

namespace longspan::log {

/// Who writes: lines of `rank` other than 0 are dropped unless they are errors. Not thread safe;
/// call at start.
void set_rank(int rank);
int rank();
/// Copies every line to `path` (appending) from now on. Throws Error.
void open_file(const std::string& path);
void close_file();

/// One line to stdout (rank 0 only) and to the file.
void line(std::string_view text);
/// One line to stderr (rank 0 only) and to the file, prefixed "warning: ".
void warning(std::string_view text);

template <class... Args>
void info(fmt::format_string<Args...> text, Args&&... args) {
  line(fmt::format(text, std::forward<Args>(args)...));
}
template <class... Args>
void warn(fmt::format_string<Args...> text, Args&&... args) {
  warning(fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace longspan::log
