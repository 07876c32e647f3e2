/// What a search found, as text and as JSON.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "launcher/plan_search.hpp"
#include "launcher/table.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::ordered_json;

std::string mesh_text(const MeshShape& mesh) {
  return fmt::format("{} x {} x {}", mesh.data, mesh.context, mesh.tensor);
}

double mib(std::int64_t bytes) {
  return static_cast<double>(bytes) / 1048576;
}

double tokens_of(const RunConfig& config) {
  return static_cast<double>(config.train.global_batch * config.data.sequence_length);
}

void expect_some(const SearchResult& result, const RunConfig& config,
                 const MachineDescription& machine, const Placement& placement) {
  if (!result.fitting.empty()) return;
  const MemoryLimit limit = planned_limit(config, machine, placement);
  if (result.smallest.memory_bytes == std::numeric_limits<std::int64_t>::max()) {
    std::string why;
    for (const auto& [reason, count] : result.rejected)
      why += fmt::format("{}{} ({} times)", why.empty() ? "" : "; ", reason, count);
    fail_usage(
        "--search: {} ranks have no mesh for this configuration: {}: change "
        "train.global-batch or the number of ranks",
        placement.ranks, why);
  }
  std::string settings;
  for (const auto& [name, value] : settings_of(result.smallest))
    settings += fmt::format(" {}={}", name, value);
  fail_usage(
      "--search: none of {} ways fits into {:.1f} MiB a rank ({}): the smallest that fits is "
      "memory.budget={}M with{}",
      result.looked_at, mib(limit.bytes), limit.source,
      (result.smallest.memory_bytes + 1048575) / 1048576, settings);
}

}  // namespace

std::vector<std::pair<std::string, std::string>> settings_of(const Candidate& c) {
  std::vector<std::pair<std::string, std::string>> all = {
      {"mesh.data", std::to_string(c.mesh.data)},
      {"mesh.context", std::to_string(c.mesh.context)},
      {"mesh.tensor", std::to_string(c.mesh.tensor)},
      {"train.micro-batch", std::to_string(c.micro_batch)},
      {"optimizer.shard", name_of(c.shard)},
      {"memory.keep", name_of(c.keep)}};
  if (c.mesh.context > 1) all.emplace_back("attention.scheme", name_of(c.scheme));
  return all;
}

RunConfig with_candidate(RunConfig config, const Candidate& c) {
  config.mesh = {c.mesh.data, c.mesh.context, c.mesh.tensor, false};
  config.train.micro_batch = c.micro_batch;
  config.optimizer.shard = c.shard;
  config.memory.keep = c.keep;
  config.attention.scheme = c.scheme;
  return config;
}

std::string search_text(const SearchResult& result, const RunConfig& config,
                        const MachineDescription& machine, const Placement& placement,
                        std::size_t shown) {
  expect_some(result, config, machine, placement);
  using Align = Table::Align;
  Table table({{""},
               {"data x context x tensor"},
               {"scheme", Align::kLeft},
               {"shard", Align::kLeft},
               {"micro-batch"},
               {"keep", Align::kLeft},
               {"tokens/s"},
               {"s a step"},
               {"MiB a rank"}});
  for (std::size_t i = 0; i < std::min(shown, result.fitting.size()); ++i) {
    const Candidate& c = result.fitting[i];
    table.add({std::to_string(i + 1), mesh_text(c.mesh),
               c.mesh.context > 1 ? name_of(c.scheme) : "", name_of(c.shard),
               std::to_string(c.micro_batch), name_of(c.keep),
               fmt::format("{:.4g}", tokens_of(config) / c.step_seconds),
               fmt::format("{:.4g}", c.step_seconds), fmt::format("{:.1f}", mib(c.memory_bytes))});
  }
  std::string text =
      fmt::format("{} ranks of {}: {} ways looked at, {} fit\n\n{}", placement.ranks, machine.name,
                  result.looked_at, result.fitting.size(), table.text());
  for (const auto& [reason, count] : result.rejected)
    text += fmt::format("out: {:>8}  {}\n", count, reason);
  text += "\nthe best one as settings:\n";
  std::string section, line;
  for (const auto& [name, value] : settings_of(result.fitting.front())) {
    const std::size_t dot = name.find('.');
    if (name.substr(0, dot) != section) text += fmt::format("[{}]\n", name.substr(0, dot));
    section = name.substr(0, dot);
    text += fmt::format("{} = {}\n", name.substr(dot + 1), value);
    line += fmt::format(" --{} {}", name, value);
  }
  return text + fmt::format("or on the command line:\n {}\n", line);
}

std::string search_json(const SearchResult& result, const RunConfig& config,
                        const MachineDescription& machine, const Placement& placement,
                        std::size_t shown) {
  expect_some(result, config, machine, placement);
  Json rows = Json::array(), rejected = Json::object();
  for (std::size_t i = 0; i < std::min(shown, result.fitting.size()); ++i) {
    const Candidate& c = result.fitting[i];
    Json settings;
    for (const auto& [name, value] : settings_of(c)) settings[name] = value;
    rows.push_back({{"memory_per_rank_bytes",
                     c.memory_bytes + static_cast<std::int64_t>(machine.program_bytes)},
                    {"step_seconds", c.step_seconds},
                    {"tokens_per_second", tokens_of(config) / c.step_seconds},
                    {"settings", settings}});
  }
  for (const auto& [reason, count] : result.rejected) rejected[reason] = count;
  Json report = {{"memory_per_rank_bytes", rows[0]["memory_per_rank_bytes"]},
                 {"step_seconds", rows[0]["step_seconds"]},
                 {"tokens_per_second", rows[0]["tokens_per_second"]},
                 {"ranks", placement.ranks},
                 {"looked_at", result.looked_at},
                 {"fitting", result.fitting.size()},
                 {"rejected", rejected},
                 {"best", rows}};
  return report.dump(2);
}

}  // namespace longspan::launcher
