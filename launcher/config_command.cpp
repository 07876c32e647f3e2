/// `longspan config`: every setting with unit, default and help; or the effective configuration of a file.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/options.hpp"
#include "launcher/text.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::ordered_json;

std::string section_of(const std::string& name) { return name.substr(0, name.find('.')); }
std::string key_of(const std::string& name) { return name.substr(name.find('.') + 1); }

std::string settings_table(const std::vector<OptionDescription>& options, std::size_t width) {
  std::size_t name = 0, value = 0, unit = 0;
  for (const auto& o : options) {
    name = std::max(name, o.name.size());
    value = std::max(value, o.default_value.size());
    unit = std::max(unit, o.unit.size());
  }
  const std::size_t left = 2 + name + 2 + value + 2 + unit + 2;
  constexpr std::size_t kNarrowestHelp = 24;
  const std::size_t help = std::max(kNarrowestHelp, width > left ? width - left : 0);
  std::string text, section;
  const auto add = [&](const std::string& a, const std::string& b, const std::string& c, const std::string& d) {
    std::string row = fmt::format("  {:<{}}  {:>{}}  {:<{}}  {}", a, name, b, value, c, unit, d);
    row.erase(row.find_last_not_of(' ') + 1);
    text += row + "\n";
  };
  add("setting", "default", "unit", "what it is");
  for (const auto& o : options) {
    if (section_of(o.name) != section) {
      section = section_of(o.name);
      text += fmt::format("\n[{}]\n", section);
    }
    const bool choice = o.values.find('|') != std::string::npos;
    const std::vector<std::string> lines = wrap(choice ? o.values + ": " + o.help : o.help, help);
    add(o.name, o.default_value, o.unit, lines[0]);
    for (std::size_t i = 1; i < lines.size(); ++i) add("", "", "", lines[i]);
  }
  return text + "\nOn the command line: --model.layers 12; in a file: [model] and layers = 12. Whole numbers take k, m or g (8k = 8192).";
}

/// INI that train reads, with a comment where it differs from the defaults.
std::string effective_ini(const std::vector<OptionDescription>& options) {
  std::string text, section;
  for (const auto& o : options) {
    if (section_of(o.name) != section) {
      section = section_of(o.name);
      text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", section);
    }
    std::string row = fmt::format("{} = {}", key_of(o.name), ini_value(o.value));
    if (o.value != o.default_value)
      row = fmt::format("{:<31} # default: {}", row, o.default_value.empty() ? "empty" : o.default_value);
    row.erase(row.find_last_not_of(' ') + 1);
    text += row + "\n";
  }
  text.pop_back();
  return text;
}

/// Numbers as numbers, switches as true and false, everything else as text.
Json typed(const OptionDescription& o, const std::string& value) {
  if (o.values == "integer" || o.values == "number") return Json::parse(value);
  if (o.values == "on|off") return value == "on";
  return value;
}

Json settings_json(const std::vector<OptionDescription>& options) {
  Json all = Json::array();
  for (const auto& o : options)
    all.push_back({{"name", o.name}, {"unit", o.unit}, {"values", o.values}, {"default", typed(o, o.default_value)}, {"help", o.help}});
  return all;
}

Json effective_json(const std::vector<OptionDescription>& options) {
  Json all;
  for (const auto& o : options) all[section_of(o.name)][key_of(o.name)] = typed(o, o.value);
  return all;
}

}  // namespace

ExitStatus config_command(const std::vector<std::string>& arguments) {
  const Arguments args(arguments, "config",
                       "lists every setting with default, unit and meaning; with --config or a setting shows the whole "
                       "configuration as a run would see it, command line over file over default",
                       {{"config", "FILE", "settings, an INI file"}, {"json", "", "one JSON document instead of text"}},
                       "longspan config --config configs/tiny.ini --train.steps 50", true);
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  if (args.has("config") || !args.settings().empty()) {
    const auto options = describe_options(parse_config(args.text("config"), args.settings()));
    log::line(args.has("json") ? effective_json(options).dump(2) : effective_ini(options));
  } else {
    const auto options = describe_options();
    log::line(args.has("json") ? settings_json(options).dump(2) : settings_table(options, terminal_width()));
  }
  return ExitStatus::kDone;
}

}  // namespace longspan::launcher
