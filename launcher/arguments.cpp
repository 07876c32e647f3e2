#include "launcher/arguments.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <utility>

#include "launcher/options.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {

Arguments::Arguments(const std::vector<std::string>& arguments, std::string command, std::string usage,
                     std::vector<Flag> flags, std::string example, bool pass_settings)
    : command_(std::move(command)), usage_(std::move(usage)), example_(std::move(example)), flags_(std::move(flags)) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (word == "--help" || word == "-h") {
      help_ = true;
      continue;
    }
    if (word.rfind("--", 0) != 0 || word == "--") {
      if (pass_settings)
        fail_usage("{}: '{}' stands alone: write --section.key VALUE (longspan {} --help)", command_, word, command_);
      positional_.push_back(word);
      continue;
    }
    const std::size_t equals = word.find('=');
    const std::string name = word.substr(2, equals == std::string::npos ? std::string::npos : equals - 2);
    if (pass_settings && name.find('.') != std::string::npos) {
      settings_.push_back(word);
      if (equals == std::string::npos) {
        if (i + 1 == arguments.size()) fail_usage("{}: --{} has no value", command_, name);
        settings_.push_back(arguments[++i]);
      }
      continue;
    }
    const auto flag = std::find_if(flags_.begin(), flags_.end(), [&](const Flag& f) { return f.name == name; });
    if (flag == flags_.end()) {
      std::vector<std::string> known = {"help"};
      for (const Flag& f : flags_) known.push_back(f.name);
      const std::string near = nearest(name, known);
      fail_usage("{}: there is no option --{}{}", command_, name,
                 near.empty() ? fmt::format(": longspan {} --help lists them", command_) : ": did you mean --" + near + "?");
    }
    if (flag->value.empty()) {
      if (equals != std::string::npos) fail_usage("{}: --{} takes no value", command_, name);
      values_[name] = "";
    } else if (equals != std::string::npos) {
      values_[name] = word.substr(equals + 1);
    } else {
      if (i + 1 == arguments.size()) fail_usage("{}: --{} needs a value: --{} {}", command_, name, name, flag->value);
      values_[name] = arguments[++i];
    }
  }
}

bool Arguments::help_wanted() const { return help_; }

std::string Arguments::help() const {
  std::string text = fmt::format("longspan {}: {}\n\n", command_, usage_);
  std::size_t widest = 0;
  for (const Flag& f : flags_) widest = std::max(widest, f.name.size() + f.value.size() + 1);
  for (const Flag& f : flags_)
    text += fmt::format("  --{:<{}}  {}{}\n", f.name + " " + f.value, widest, f.help,
                        f.default_value.empty() ? "" : " (default " + f.default_value + ")");
  text += fmt::format("  --{:<{}}  this text\n\nExample:\n  {}", "help", widest, example_);
  return text;
}

bool Arguments::has(const std::string& flag) const { return values_.count(flag) != 0; }

std::string Arguments::text(const std::string& flag) const {
  if (const auto at = values_.find(flag); at != values_.end()) return at->second;
  for (const Flag& f : flags_)
    if (f.name == flag) return f.default_value;
  return "";
}

std::int64_t Arguments::integer(const std::string& flag) const {
  const std::string value = text(flag);
  std::int64_t number = 0;
  const auto [rest, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || rest != value.data() + value.size())
    fail_usage("{}: --{} {}: it must be a whole number", command_, flag, value);
  return number;
}

double Arguments::number(const std::string& flag) const {
  const std::string value = text(flag);
  double number = 0;
  const auto [rest, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || rest != value.data() + value.size())
    fail_usage("{}: --{} {}: it must be a number", command_, flag, value);
  return number;
}

const std::vector<std::string>& Arguments::positional() const { return positional_; }
const std::vector<std::string>& Arguments::settings() const { return settings_; }

}  // namespace longspan::launcher
