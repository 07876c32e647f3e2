/// Text for people: lines broken at words, and words for a shell.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "slurm/quoting.hpp"

namespace longspan::launcher {

/// Columns of the terminal on stdout; COLUMNS if that is set, 100 where there is no terminal.
std::size_t terminal_width();

/// `text` broken at spaces into lines of at most `width` characters; a longer word has a line of
/// its own.
std::vector<std::string> wrap(const std::string& text, std::size_t width);

using slurm::shell_quoted;

}  // namespace longspan::launcher
