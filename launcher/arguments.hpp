/// Flags of the subcommands that are not settings of a run: --output F, --ranks N, --json. Shared
/// by all of them, so that they fail alike: unknown flags name the nearest valid one, missing
/// values name the flag.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace longspan::launcher {

struct Flag {
  std::string name;   ///< without the dashes: "output"
  std::string value;  ///< what stands in the help for its value; empty = a switch
  std::string help;
  std::string default_value = "";
};

class Arguments {
 public:
  /// `usage` is the first line of the help, `example` the last. Throws Error (usage). With
  /// pass_settings, every
  /// "--section.key value" is kept for parse_config instead of being checked here.
  Arguments(const std::vector<std::string>& arguments, std::string command, std::string usage,
            std::vector<Flag> flags, std::string example, bool pass_settings = false);
  bool help_wanted() const;  ///< --help or -h; print help() and return kDone
  std::string help() const;
  bool has(const std::string& flag) const;
  std::string text(const std::string& flag) const;  ///< the value, or its default
  std::int64_t integer(const std::string& flag) const;
  double number(const std::string& flag) const;
  const std::vector<std::string>& positional() const;
  const std::vector<std::string>& settings() const;  ///< for parse_config

 private:
  std::string command_, usage_, example_;
  std::vector<Flag> flags_;
  std::map<std::string, std::string> values_;
  std::vector<std::string> positional_, settings_;
  bool help_ = false;
};

}  // namespace longspan::launcher
