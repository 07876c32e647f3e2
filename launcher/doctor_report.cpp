/// What doctor found, for people and for programs.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <tuple>

#include "launcher/doctor.hpp"

namespace longspan::launcher {
namespace {

constexpr std::array<std::string_view, 4> kHealthNames = {"ok", "info", "warning", "bad"};
constexpr std::array<std::string_view, 4> kMarks = {"ok", "  ", "! ", "!!"};
constexpr std::array<std::string_view, 4> kColours = {"\033[32m", "", "\033[33m", "\033[31;1m"};

std::size_t index_of(Health health) {
  return static_cast<std::size_t>(health);
}

nlohmann::ordered_json to_json(const Finding& f) {
  nlohmann::ordered_json object = {{"topic", f.topic},
                                   {"subject", f.subject},
                                   {"health", kHealthNames[index_of(f.health)]},
                                   {"found", f.found}};
  if (!f.remedy.empty()) object["remedy"] = f.remedy;
  return object;
}

std::string place_text(const std::vector<std::string>& nodes) {
  if (nodes.empty()) return "";
  constexpr std::size_t kShown = 4;
  const std::size_t shown = std::min(kShown, nodes.size());
  std::string text =
      fmt::format("{}", fmt::join(nodes.begin(), nodes.begin() + static_cast<long>(shown), ", "));
  if (nodes.size() > shown) text += fmt::format(" and {} more", nodes.size() - shown);
  return text + ": ";
}

}  // namespace

std::vector<PlacedFinding> merge_findings(
    const std::vector<std::pair<std::string, Findings>>& by_node) {
  struct Group {
    Finding first;
    std::vector<std::string> nodes;
    bool differs = false;
  };
  std::vector<Group> groups;  // in order of first sight
  std::map<std::tuple<std::string, std::string, std::size_t, std::string>, std::size_t> where;
  std::set<std::string> all_nodes;
  for (const auto& [node, findings] : by_node) {
    all_nodes.insert(node);
    for (const Finding& f : findings) {
      // What is only worded differently (so much memory here, so much there) is one finding; what
      // is ill is told node by node.
      const bool ill = f.health == Health::kWarning || f.health == Health::kBad;
      const auto key =
          std::tuple(f.topic, f.subject, index_of(f.health), ill ? f.found : std::string());
      const auto [at, is_new] = where.emplace(key, groups.size());
      if (is_new) groups.push_back({f, {}, false});
      Group& group = groups[at->second];
      group.differs |= group.first.found != f.found;
      if (group.nodes.empty() || group.nodes.back() != node) group.nodes.push_back(node);
    }
  }
  std::vector<PlacedFinding> merged;
  for (Group& group : groups) {
    const bool everywhere = group.nodes.size() == all_nodes.size();
    if (everywhere && group.differs)
      group.first.found += fmt::format(" (on {}; the others are alike)", group.nodes.front());
    merged.push_back({group.first, everywhere ? std::vector<std::string>() : group.nodes});
  }
  return merged;
}

std::string findings_to_json(const Findings& findings) {
  auto list = nlohmann::ordered_json::array();
  for (const Finding& f : findings) list.push_back(to_json(f));
  return list.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Findings findings_from_json(const std::string& text) {
  Findings findings;
  for (const auto& object : nlohmann::json::parse(text)) {
    const auto name = object.at("health").get<std::string>();
    const auto health = std::find(kHealthNames.begin(), kHealthNames.end(), name);
    findings.push_back({object.at("topic"), object.at("subject"),
                        static_cast<Health>(health - kHealthNames.begin()), object.at("found"),
                        object.value("remedy", "")});
  }
  return findings;
}

std::string doctor_text(const std::vector<PlacedFinding>& findings, bool colour) {
  std::size_t width = 0;
  std::vector<std::string> topics;  // in order of first sight
  for (const auto& [f, nodes] : findings) {
    width = std::max(width, f.subject.size());
    if (std::find(topics.begin(), topics.end(), f.topic) == topics.end()) topics.push_back(f.topic);
  }
  std::string text;
  std::array<int, 4> counts{};
  for (const std::string& topic : topics) {
    text += topic + "\n";
    for (const auto& [f, nodes] : findings) {
      if (f.topic != topic) continue;
      const std::size_t health = index_of(f.health);
      ++counts[health];
      const std::string_view on = colour ? kColours[health] : "", off = on.empty() ? "" : "\033[0m";
      text += fmt::format("  {}{}{}  {:<{}}  {}{}\n", on, kMarks[health], off, f.subject, width,
                          place_text(nodes), f.found);
      if (!f.remedy.empty()) text += fmt::format("      {:<{}}  -> {}\n", "", width, f.remedy);
    }
  }
  const int warnings = counts[index_of(Health::kWarning)], bad = counts[index_of(Health::kBad)];
  if (warnings + bad == 0) return text + "nothing is wrong";
  return text + fmt::format("{} bad, {} warning{}", bad, warnings, warnings == 1 ? "" : "s");
}

std::string doctor_json(const std::vector<PlacedFinding>& findings, int ranks,
                        const std::vector<std::string>& nodes) {
  auto list = nlohmann::ordered_json::array();
  for (const auto& [f, where] : findings) {
    auto object = to_json(f);
    if (!where.empty()) object["nodes"] = where;
    list.push_back(std::move(object));
  }
  const nlohmann::ordered_json report = {{"ranks", ranks}, {"nodes", nodes}, {"findings", list}};
  return report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace longspan::launcher
