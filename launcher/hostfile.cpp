#include "launcher/hostfile.hpp"

#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <sstream>

#include "launcher/options.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

/// "slots = 4" is as good as "slots=4".
std::vector<std::string> words_of(std::string line) {
  if (const std::size_t comment = line.find('#'); comment != std::string::npos)
    line.resize(comment);
  std::vector<std::string> words;
  std::string text;
  for (const char c : line) text += c == '=' ? std::string(" = ") : std::string(1, c);
  std::istringstream stream(text);
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

std::optional<int> whole_number(const std::string& text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

class Reader {
 public:
  explicit Reader(std::string source) : source_(std::move(source)) {}
  void read_line(int number, const std::string& line) {
    const std::vector<std::string> words = words_of(line);
    if (words.empty()) return;
    Host host{words[0].substr(words[0].find('@') + 1), 0};
    if (host.name.empty() || words[0] == "=" ||
        host.name.find_first_of(",;\"'`$()[]") != std::string::npos)
      return problem(number, "'{}' is no name of a host: one host a line", words[0]);
    int most = 0;
    for (std::size_t i = 1; i < words.size(); i += 3) {
      static const std::vector<std::string> known = {"slots", "max_slots", "max-slots"};
      const std::string& key = words[i];
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        const std::string near = nearest(key, known);
        return problem(number, "'{}' is not known here{}", key,
                       near.empty() ? ": a line is HOST slots=N" : ": did you mean " + near + "?");
      }
      const bool complete = i + 2 < words.size() && words[i + 1] == "=";
      const auto value = complete ? whole_number(words[i + 2]) : std::nullopt;
      if (!value || *value < 1)
        return problem(number, "{}{}: it needs a whole number of at least 1, {}=4", key,
                       complete ? "=" + words[i + 2] : "", key);
      (key == "slots" ? host.slots : most) = *value;
    }
    if (most > 0 && most < host.slots)
      return problem(number, "slots={} is more than max_slots={}", host.slots, most);
    add(number, host);
  }
  std::vector<Host> finish() {
    if (hosts_.empty() && problems_.empty())
      problems_.push_back(source_ + ": it names no host: a line is HOST slots=N");
    if (!problems_.empty()) fail_usage("{}", fmt::join(problems_, "\n"));
    return hosts_;
  }

 private:
  template <class... Args>
  void problem(int line, fmt::format_string<Args...> text, Args&&... args) {
    problems_.push_back(
        fmt::format("{}:{}: {}", source_, line, fmt::format(text, std::forward<Args>(args)...)));
  }
  void add(int line, const Host& host) {
    const auto [first, is_new] = first_.try_emplace(host.name, First{line, host.slots});
    if (!is_new && (host.slots > 0 || first->second.slots > 0))
      return problem(line,
                     "{} stands in line {} already: one line with slots=N, or a line without slots "
                     "for each rank",
                     host.name, first->second.line);
    hosts_.push_back(host);
  }

  struct First {
    int line, slots;
  };
  std::string source_;
  std::vector<Host> hosts_;
  std::map<std::string, First> first_;
  std::vector<std::string> problems_;
};

}  // namespace

std::vector<Host> parse_hostfile(const std::string& text, const std::string& source) {
  Reader reader(source);
  std::istringstream lines(text);
  int number = 0;
  for (std::string line; std::getline(lines, line);) reader.read_line(++number, line);
  return reader.finish();
}

std::vector<Host> read_hostfile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file.is_open() || file.bad())
    fail_usage("launch: --hostfile {}: cannot be read: a line is HOST slots=N", path);
  return parse_hostfile(text, path);
}

int total_slots(const std::vector<Host>& hosts) {
  std::map<std::string, int> lines;
  int total = 0;
  for (const Host& host : hosts) total += std::max(host.slots, 0), ++lines[host.name];
  for (const Host& host : hosts) {
    if (host.slots > 0) continue;
    if (lines[host.name] == 1) return 0;  // its cores, which are not known here
    ++total;                              // one rank for each line
  }
  return total;
}

bool all_local(const std::vector<Host>& hosts) {
  std::array<char, 256> name = {};
  ::gethostname(name.data(), name.size() - 1);
  const std::string me = name.data();
  return std::all_of(hosts.begin(), hosts.end(), [&](const Host& host) {
    return host.name == "localhost" || host.name == "127.0.0.1" || host.name == me ||
           host.name == me.substr(0, me.find('.'));
  });
}

}  // namespace longspan::launcher
