#include "slurm/site.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <sstream>
#include <string_view>
#include <utility>

#include "slurm/process.hpp"
#include "slurm/quoting.hpp"
#include "slurm/remaining_time.hpp"

namespace longspan::slurm {
namespace {

using Words = std::vector<std::string>;
constexpr auto kPatience = std::chrono::seconds(5);

Words split(std::string_view text, char separator) {
  Words parts;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(separator), text.size());
    if (end > 0) parts.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

bool has(const Words& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

std::optional<int> number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end == text.data()) return std::nullopt;
  return value;
}

/// A list of names; none if all are meant.
Words names(const std::string& text) {
  return text == "ALL" || text == "(null)" ? Words{} : split(text, ',');
}

/// What the command says, or nothing if it fails.
std::string said(const Words& command) {
  const ProcessOutcome outcome = run_process(command, "", kPatience);
  return outcome.fine() ? outcome.out : "";
}

/// Whether something stronger than the settings decides where and how long the job runs: options
/// that are not read here, or sbatch's own variables.
bool decided_elsewhere(const SlurmConfig& request) {
  for (const char* name : {"SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SBATCH_CLUSTERS"})
    if (std::getenv(name) != nullptr) return true;
  constexpr std::array<std::pair<const char*, const char*>, 4> kOptions = {
      {{"--partition", "-p"}, {"--time", "-t"}, {"--nodes", "-N"}, {"--clusters", "-M"}}};
  for (const std::string& line : split(request.extra, '\n'))
    for (const std::string& word : split_words(line))
      for (const auto& [name, letter] : kOptions)
        if (word == name || word.starts_with(std::string(name) + "=") ||
            (word.starts_with(letter) && !word.starts_with("--")))
          return true;
  return false;
}

std::string hours(std::int64_t seconds) {
  return fmt::format("{}-{:02}:{:02}:{:02}", seconds / 86400, seconds / 3600 % 24,
                     seconds / 60 % 60, seconds % 60);
}

/// What one partition cannot serve.
std::vector<RequestProblem> problems_in(const Partition& p, const SlurmConfig& s, int cpus_per_rank,
                                        const Site& site) {
  std::vector<RequestProblem> problems;
  const auto add = [&](bool certain, std::string text) {
    problems.push_back({certain, std::move(text)});
  };
  if (!p.up)
    add(false,
        fmt::format("partition {} is not up: the job would wait until it is (`sinfo -s`)", p.name));
  if (p.nodes > 0 && s.nodes > p.nodes)
    add(true, fmt::format("slurm.nodes={} but partition {} has {}: lower slurm.nodes, or choose "
                          "another slurm.partition",
                          s.nodes, p.name, p.nodes));
  else if (p.max_nodes && s.nodes > *p.max_nodes)
    add(false, fmt::format("slurm.nodes={} but partition {} allows {} to a job: it would wait for "
                           "ever; lower slurm.nodes, or choose another slurm.partition",
                           s.nodes, p.name, *p.max_nodes));
  const auto wanted = parse_slurm_time(s.time, true);
  if (p.max_seconds && wanted && *wanted > *p.max_seconds)
    add(false,
        fmt::format("slurm.time={} is above the {} of partition {}: it would wait for ever; "
                    "lower slurm.time (the run continues in the next job), or choose another "
                    "slurm.partition",
                    s.time, hours(*p.max_seconds), p.name));

  const int cpus = s.ranks_per_node * std::max(1, cpus_per_rank);
  int most = 0, fitting = 0;
  for (const NodeKind& kind : site.node_kinds) {
    if (kind.partition != p.name) continue;
    most = std::max(most, kind.cpus);
    if (kind.cpus >= cpus) fitting += kind.nodes;
  }
  const std::string sum =
      fmt::format("slurm.ranks-per-node={} * {} processor{} a rank = {}", s.ranks_per_node,
                  std::max(1, cpus_per_rank), cpus_per_rank > 1 ? "s" : "", cpus);
  constexpr std::string_view kLess = "lower slurm.ranks-per-node or slurm.cpus-per-rank";
  if (most > 0 && cpus > most)
    add(true, fmt::format("{}, but no node of partition {} has more than {}: {}", sum, p.name, most,
                          kLess));
  else if (most > 0 && fitting < s.nodes && s.nodes <= p.nodes)
    add(true, fmt::format("{}, but only {} of the nodes of partition {} have as many, and "
                          "slurm.nodes={}: {}",
                          sum, fitting, p.name, s.nodes, kLess));

  const auto name = [&](const char* setting, const std::string& value, const Words& allowed,
                        const Words& denied) {
    if (value.empty()) return;
    if (!allowed.empty() && !has(allowed, value))
      add(false, fmt::format("{}={}: partition {} takes {}", setting, value, p.name,
                             fmt::join(allowed, ", ")));
    else if (has(denied, value))
      add(false, fmt::format("{}={}: partition {} does not take it", setting, value, p.name));
  };
  name("slurm.account", s.account, p.allowed_accounts, p.denied_accounts);
  name("slurm.qos", s.qos, p.allowed_qos, p.denied_qos);
  return problems;
}

}  // namespace

std::vector<Partition> parse_partitions(const std::string& text) {
  std::vector<Partition> all;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    Partition p;
    for (const std::string& field : split(line, ' ')) {
      const std::size_t equals = field.find('=');
      if (equals == std::string::npos) continue;
      const std::string key = field.substr(0, equals), value = field.substr(equals + 1);
      if (key == "PartitionName") p.name = value;
      if (key == "Default") p.is_default = value == "YES";
      if (key == "State") p.up = value == "UP";
      if (key == "TotalNodes") p.nodes = number(value).value_or(0);
      if (key == "MaxNodes") p.max_nodes = number(value);
      if (key == "MaxTime") p.max_seconds = parse_slurm_time(value);
      if (key == "AllowAccounts") p.allowed_accounts = names(value);
      if (key == "DenyAccounts") p.denied_accounts = names(value);
      if (key == "AllowQos") p.allowed_qos = names(value);
      if (key == "DenyQos") p.denied_qos = names(value);
    }
    if (!p.name.empty()) all.push_back(std::move(p));
  }
  return all;
}

std::vector<NodeKind> parse_node_kinds(const std::string& text) {
  std::vector<NodeKind> kinds;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const Words fields = split(line, '|');
    if (fields.size() != 3) continue;
    const auto cpus = number(fields[1]), nodes = number(fields[2]);
    if (cpus && nodes) kinds.push_back({fields[0], *cpus, *nodes});
  }
  return kinds;
}

std::optional<Site> ask_site(const SlurmConfig& request) {
  if (decided_elsewhere(request)) return std::nullopt;
  Site site;
  site.partitions = parse_partitions(said({"scontrol", "-a", "-o", "show", "partition"}));
  if (site.partitions.empty()) return std::nullopt;
  site.node_kinds = parse_node_kinds(said({"sinfo", "-a", "-h", "-e", "-o", "%R|%c|%D"}));
  if (request.account.empty() && request.qos.empty()) return site;
  const passwd* const user = ::getpwuid(::getuid());
  if (user == nullptr) return site;
  const std::string associations =
      said({"sacctmgr", "-n", "-P", "show", "associations", fmt::format("user={}", user->pw_name),
            "format=account,qos"});
  for (const std::string& line : split(associations, '\n')) {
    const std::size_t bar = std::min(line.find('|'), line.size());
    if (bar > 0) site.accounts.push_back(line.substr(0, bar));
    for (std::string& name : split(line.substr(std::min(bar + 1, line.size())), ','))
      site.qos.push_back(std::move(name));
  }
  return site;
}

std::vector<RequestProblem> request_problems(const SlurmConfig& request, int cpus_per_rank,
                                             const Site& site) {
  std::vector<RequestProblem> problems;
  const auto mine = [&](const char* setting, const std::string& value, Words known) {
    if (value.empty() || known.empty() || has(known, value)) return;
    std::sort(known.begin(), known.end());
    known.erase(std::unique(known.begin(), known.end()), known.end());
    problems.push_back({false, fmt::format("{}={} is not one of yours: {}", setting, value,
                                           fmt::join(known, ", "))});
  };
  mine("slurm.account", request.account, site.accounts);
  mine("slurm.qos", request.qos, site.qos);

  Words wanted = split(request.partition, ',');
  if (wanted.empty())
    for (const Partition& p : site.partitions)
      if (p.is_default) wanted.push_back(p.name);
  std::optional<std::vector<RequestProblem>> first;
  bool served = false;
  for (const std::string& name : wanted) {
    const auto at = std::find_if(site.partitions.begin(), site.partitions.end(),
                                 [&](const Partition& p) { return p.name == name; });
    if (at == site.partitions.end()) {
      Words known;
      for (const Partition& p : site.partitions) known.push_back(p.name);
      problems.push_back({true, fmt::format("slurm.partition={}: there is no such partition: set "
                                            "slurm.partition to {}",
                                            name, fmt::join(known, ", "))});
      continue;
    }
    auto found = problems_in(*at, request, cpus_per_rank, site);
    served = served || found.empty();
    if (!first) first = std::move(found);
  }
  if (first && !served) problems.insert(problems.end(), first->begin(), first->end());
  return problems;
}

}  // namespace longspan::slurm
