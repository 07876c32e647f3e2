/// The one registry: option name, unit and help <-> field of RunConfig. It parses the command line, then the file
/// (command line over file over default), and prints the effective configuration. Boost is only seen by options.cpp.
///
/// INI: [section], key = value, comments from # or ; at the beginning of a line or after a space; a value with one of these, or
/// with spaces at its ends, stands in double quotes (\" \\ \n inside). Whole numbers take k, m or g: 8k = 8 * 1024. Switches: on,
/// off, also true, false, yes, no, 1, 0. A key that stands twice in a file is a problem; on the command line the last one counts.
#pragma once

#include <string>
#include <vector>

#include "launcher/run_config.hpp"

namespace longspan::launcher {

struct OptionDescription {
  std::string name;           ///< "data.sequence-length"
  std::string unit;           ///< "tokens", "" when there is none
  std::string default_value;
  std::string help;
  std::string values;         ///< "integer", "number", "text", or the choices: "gelu|swiglu"
  std::string value;          ///< in the configuration that was described
};

/// Reads `file` (INI; empty = none), then applies `arguments` ("--section.key", "value", ... or "--section.key=value").
/// Throws Error (usage) with every problem at once, one per line of the message: unknown keys with the nearest valid one,
/// values that do not parse with what would, and problems_of().
RunConfig parse_config(const std::string& file, const std::vector<std::string>& arguments);

/// INI text that parse_config reads back to the same RunConfig; every option, grouped by section, in registry order.
std::string to_ini(const RunConfig& config);
/// From INI text instead of a file (the configuration inside a checkpoint).
RunConfig parse_ini(const std::string& text);

/// Every option in registry order.
std::vector<OptionDescription> describe_options(const RunConfig& config = {});

/// `value` as it has to stand in an INI file.
std::string ini_value(const std::string& value);

/// The candidate with the smallest edit distance to `word` (Damerau: neighbours that changed places count once); empty if none is
/// near. For names with a section the key alone counts as well, so that a key in the wrong section finds the right one.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace longspan::launcher
