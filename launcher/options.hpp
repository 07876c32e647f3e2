/// The one registry: option name, unit and help <-> field of RunConfig. It parses the command line, then the file
/// (command line over file over default), and prints the effective configuration. Boost is only seen by options.cpp.
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
};

/// Reads `file` (INI; empty = none), then applies `arguments` ("--section.key", "value", ... or "--section.key=value").
/// Throws Error (usage) with every problem at once, one per line of the message: unknown keys with the nearest valid one,
/// values that do not parse with what would, and problems_of().
RunConfig parse_config(const std::string& file, const std::vector<std::string>& arguments);

/// INI text that parse_config reads back to the same RunConfig; every option, grouped by section, in registry order.
std::string to_ini(const RunConfig& config);
/// From INI text instead of a file (the configuration inside a checkpoint).
RunConfig parse_ini(const std::string& text);

std::vector<OptionDescription> describe_options();

/// The candidate with the smallest edit distance to `word`; empty if none is near.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace longspan::launcher
