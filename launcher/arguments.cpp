#include "launcher/arguments.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "launcher/options.hpp"
#include "launcher/text.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

bool is_setting(const std::string& name) { return name.find('.') != std::string::npos; }

/// "--output FILE", or "--json" for a switch.
std::string spelling(const Flag& flag) { return "--" + flag.name + (flag.value.empty() ? "" : " " + flag.value); }

template <class T>
T parse_number(const std::string& command, const std::string& flag, const std::string& text, const char* what) {
  T number{};
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || rest != end) fail_usage("{}: --{} {}: it must be {}", command, flag, shell_quoted(text), what);
  return number;
}

}  // namespace

Arguments::Arguments(const std::vector<std::string>& arguments, std::string command, std::string usage,
                     std::vector<Flag> flags, std::string example, bool pass_settings)
    : command_(std::move(command)), usage_(std::move(usage)), example_(std::move(example)), flags_(std::move(flags)) {
  // A line with --help is a question: whatever else is wrong with it is not the answer.
  for (const std::string& word : arguments) {
    if (word == "--") break;
    help_ = help_ || word == "--help" || word == "-h";
  }
  if (help_) return;

  bool only_positional = false;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (!only_positional && word == "--") {
      only_positional = true;
      continue;
    }
    if (only_positional || word.size() < 2 || word[0] != '-') {
      if (pass_settings)
        fail_usage("{}: '{}' stands alone: settings are written --section.key VALUE (longspan {} --help)", command_, word, command_);
      positional_.push_back(word);
      continue;
    }
    const std::size_t equals = word.find('=');
    const std::string name = word.substr(word[1] == '-' ? 2 : 1, equals == std::string::npos ? equals : equals - (word[1] == '-' ? 2 : 1));
    const auto next_value = [&](const std::string& what) {
      if (equals != std::string::npos) return word.substr(equals + 1);
      if (i + 1 == arguments.size() || arguments[i + 1].rfind("--", 0) == 0)
        fail_usage("{}: --{} needs a value: --{} {}", command_, name, name, what);
      return arguments[++i];
    };
    if (pass_settings && is_setting(name) && word[1] == '-') {
      const std::string value = next_value("VALUE");
      settings_.insert(settings_.end(), {"--" + name, value});
      continue;
    }
    const auto flag = std::find_if(flags_.begin(), flags_.end(), [&](const Flag& f) { return f.name == name; });
    if (word[1] != '-' || flag == flags_.end()) {
      std::vector<std::string> known = {"help"};
      for (const Flag& f : flags_) known.push_back(f.name);
      if (pass_settings)
        for (const OptionDescription& o : describe_options()) known.push_back(o.name);
      const std::string near = nearest(name, known);
      fail_usage("{}: there is no option {}{}", command_, word.substr(0, equals),
                 near.empty() ? fmt::format(": longspan {} --help lists them", command_) : ": did you mean --" + near + "?");
    }
    if (!flag->value.empty())
      values_[name] = next_value(flag->value);
    else if (equals == std::string::npos)
      values_[name] = "";
    else
      fail_usage("{}: --{} is a switch and takes no value", command_, name);
  }
}

bool Arguments::help_wanted() const { return help_; }

std::string Arguments::help() const {
  std::vector<Flag> shown = flags_;
  shown.push_back({"help", "", "this text"});
  std::size_t widest = 0;
  for (const Flag& f : shown) widest = std::max(widest, spelling(f).size());
  const std::size_t width = std::max(terminal_width(), widest + 24);
  std::string text;
  for (const std::string& line : wrap(fmt::format("longspan {}: {}", command_, usage_), width)) text += line + "\n";
  text += "\n";
  for (const Flag& f : shown) {
    const std::string help = f.help + (f.default_value.empty() ? "" : " (default " + f.default_value + ")");
    std::string left = spelling(f);
    for (const std::string& line : wrap(help, width - widest - 4)) {
      text += fmt::format("  {:<{}}  {}\n", left, widest, line);
      left.clear();
    }
  }
  return text + "\nExample:\n  " + example_;
}

bool Arguments::has(const std::string& flag) const { return values_.count(flag) != 0; }

std::string Arguments::text(const std::string& flag) const {
  if (const auto at = values_.find(flag); at != values_.end()) return at->second;
  const auto known = std::find_if(flags_.begin(), flags_.end(), [&](const Flag& f) { return f.name == flag; });
  return known == flags_.end() ? "" : known->default_value;
}

std::int64_t Arguments::integer(const std::string& flag) const {
  return parse_number<std::int64_t>(command_, flag, text(flag), "a whole number");
}

double Arguments::number(const std::string& flag) const {
  return parse_number<double>(command_, flag, text(flag), "a number");
}

const std::vector<std::string>& Arguments::positional() const { return positional_; }
const std::vector<std::string>& Arguments::settings() const { return settings_; }

}  // namespace longspan::launcher
