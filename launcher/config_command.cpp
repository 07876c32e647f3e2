/// `longspan config`: every setting, or what a file and the command line make of them.
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/options.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

int terminal_width() {
  winsize size = {};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 60 ? size.ws_col : 132;
}

void print_settings() {
  const auto options = describe_options();
  std::size_t name_width = 0, default_width = 0, unit_width = 0;
  for (const auto& o : options) {
    name_width = std::max(name_width, o.name.size());
    default_width = std::max(default_width, o.default_value.size());
    unit_width = std::max(unit_width, o.unit.size());
  }
  const std::size_t indent = 2 + name_width + 2 + default_width + 2 + unit_width + 2;
  const std::size_t help_width = std::max<std::size_t>(30, static_cast<std::size_t>(terminal_width()) - indent);
  std::string section;
  for (const auto& o : options) {
    if (const std::string own = o.name.substr(0, o.name.find('.')); own != section) {
      section = own;
      log::info("{}[{}]", &o == options.data() ? "" : "\n", section);
    }
    std::istringstream words(o.help);
    std::string line;
    bool first = true;
    const auto put = [&] {
      if (first)
        log::info("  {:<{}}  {:<{}}  {:<{}}  {}", o.name, name_width, o.default_value, default_width, o.unit, unit_width, line);
      else
        log::info("{:<{}}{}", "", indent, line);
      first = false;
      line.clear();
    };
    for (std::string word; words >> word;) {
      if (!line.empty() && line.size() + 1 + word.size() > help_width) put();
      line += (line.empty() ? "" : " ") + word;
    }
    put();
  }
}

/// section.key -> value, as to_ini writes them.
std::map<std::string, std::string> values_of(const std::string& ini) {
  std::map<std::string, std::string> values;
  std::istringstream lines(ini);
  std::string section;
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line[0] == '[') section = line.substr(1, line.find(']') - 1);
    if (const auto equals = line.find(" = "); equals != std::string::npos)
      values[section + "." + line.substr(0, equals)] = line.substr(equals + 3);
  }
  return values;
}

void print_effective(const RunConfig& config, bool json) {
  const std::string ini = to_ini(config);
  const auto defaults = values_of(to_ini(RunConfig()));
  if (json) {
    log::line(nlohmann::json(values_of(ini)).dump(2));
    return;
  }
  std::istringstream lines(ini);
  std::string section;
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line[0] == '[') section = line.substr(1, line.find(']') - 1);
    const auto equals = line.find(" = ");
    if (equals != std::string::npos) {
      const std::string& usual = defaults.at(section + "." + line.substr(0, equals));
      if (line.substr(equals + 3) != usual) line += "  # default: " + usual;
    }
    log::line(line);
  }
}

}  // namespace

ExitStatus config_command(const std::vector<std::string>& arguments) {
  const Arguments args(arguments, "config", "lists every setting; with --config FILE or --section.key VALUE, the effective configuration",
                       {{"config", "FILE", "settings, an INI file"}, {"json", "", "as JSON"}},
                       "longspan config --config configs/tiny.ini --train.steps 50", true);
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  if (args.has("config") || !args.settings().empty()) {
    print_effective(parse_config(args.text("config"), args.settings()), args.has("json"));
  } else if (args.has("json")) {
    nlohmann::json all = nlohmann::json::array();
    for (const auto& o : describe_options())
      all.push_back({{"name", o.name}, {"unit", o.unit}, {"default", o.default_value}, {"help", o.help}});
    log::line(all.dump(2));
  } else {
    print_settings();
  }
  return ExitStatus::kDone;
}

}  // namespace longspan::launcher
