/// INI text to settings with the lines they stand in; the syntax is in options.hpp. Boost's reader is not used for files: it knows
/// no comments with ';', cuts values at '#' (a legal character in paths), and does not tell line numbers.
#pragma once

#include <string>
#include <vector>

namespace longspan::launcher {

struct IniEntry {
  std::string name;  ///< "section.key"
  std::string value;
  int line = 0;      ///< from 1; 0 = not from a file
};

/// Lines that make no sense are added to `problems` as "source:line: ..." and left out.
std::vector<IniEntry> parse_ini_lines(const std::string& text, const std::string& source,
                                      std::vector<std::string>& problems);

}  // namespace longspan::launcher
