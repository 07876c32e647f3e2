/// A plan as text and as JSON.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "launcher/plan.hpp"
#include "launcher/table.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::ordered_json;

std::string where(bool inside) {
  return inside ? "inside a node" : "between nodes";
}

struct Axis {
  const char* name;
  int ranks;
  double bytes;
  bool inside;
};

std::vector<Axis> axes_of(const Plan& p) {
  const MeshConfig& m = p.config.mesh;
  return {{"context", m.context, p.bytes.context, p.placement.inside(m.context, m.tensor)},
          {"tensor", m.tensor, p.bytes.tensor, p.placement.inside(m.tensor, 1)},
          {"gradients", m.data * m.context, p.bytes.gradients,
           p.placement.inside(p.placement.ranks, 1)}};
}

std::string duration_text(double seconds) {
  if (seconds < 120) return fmt::format("{:.1f} s", seconds);
  if (seconds < 7200) return fmt::format("{:.1f} min", seconds / 60);
  if (seconds < 2 * 86400) return fmt::format("{:.1f} h", seconds / 3600);
  return fmt::format("{:.1f} days", seconds / 86400);
}

}  // namespace

std::string plan_text(const Plan& p, const MachineDescription& machine,
                      const std::vector<Advice>& advice) {
  using Align = Table::Align;
  const RunConfig& c = p.config;
  std::string text = fmt::format("{} rank{} on {} node{} of {} ({}), {}\n", p.placement.ranks,
                                 p.placement.ranks == 1 ? "" : "s", p.placement.nodes(),
                                 p.placement.nodes() == 1 ? "" : "s", machine.name, machine.path,
                                 to_string(MeshShape{c.mesh.data, c.mesh.context, c.mesh.tensor}));
  if (!p.scheme.why.empty()) text += fmt::format("attention: {}\n", p.scheme.why);
  if (!p.keep_reason.empty()) text += fmt::format("{}\n", p.keep_reason);

  Table memory({{"memory of a rank", Align::kLeft}, {"MiB"}});
  for (const auto& [name, bytes] : kinds_of(p.memory))
    if (bytes > 0) memory.add({name, fmt::format("{:.1f}", static_cast<double>(bytes) / 1048576)});
  memory.add({"total", fmt::format("{:.1f}", static_cast<double>(p.memory.total()) / 1048576)});
  text += fmt::format("\n{}", memory.text());

  Table seconds({{"a step", Align::kLeft}, {"seconds"}, {"share"}});
  for (const auto& [name, part] : parts_of(p.seconds))
    if (part > 0)
      seconds.add({name, fmt::format("{:.4g}", part),
                   fmt::format("{:.1f} %", 100 * part / p.step_seconds())});
  seconds.add({"total", fmt::format("{:.4g}", p.step_seconds()), ""});
  text += fmt::format("\n{}", seconds.text());

  Table bytes({{"sent by a rank in a step", Align::kLeft}, {"ranks"}, {"MiB"}, {"", Align::kLeft}});
  for (const Axis& axis : axes_of(p))
    if (axis.ranks > 1)
      bytes.add({axis.name, std::to_string(axis.ranks), fmt::format("{:.1f}", axis.bytes / 1048576),
                 where(axis.inside)});
  if (!bytes.empty()) text += fmt::format("\n{}", bytes.text());

  text += fmt::format("\n{:.4g} tokens/s, {:.1f} % MFU; {} steps take {}", p.tokens_per_second,
                      100 * p.mfu, c.train.steps, duration_text(p.run_seconds));
  if (p.watts > 0) text += fmt::format(", {:.4g} kWh", p.watts / 1000 * p.run_seconds / 3600);
  if (p.cost > 0) text += fmt::format(", cost {:.4g}", p.cost);
  if (p.kilograms_co2 > 0) text += fmt::format(", {:.4g} kg CO2", p.kilograms_co2);
  text += fmt::format("\nmost time goes into: {}\n", limiting_part(p.seconds));
  if (!advice.empty()) {
    text += "what would help most:\n";
    std::size_t shown = 0;
    for (const Advice& a : advice)
      if (shown++ < 5) text += fmt::format("  {:.1f} % less time: {}\n", 100 * a.saved, a.change);
  }
  return text;
}

std::string plan_json(const Plan& p, const MachineDescription& machine,
                      const std::vector<Advice>& advice) {
  const RunConfig& c = p.config;
  Json memory, seconds, bytes, ideas = Json::array();
  for (const auto& [name, value] : kinds_of(p.memory)) memory[name] = value;
  memory["arrays"] = p.memory.arrays();
  for (const auto& [name, value] : parts_of(p.seconds)) seconds[name] = value;
  for (const Axis& axis : axes_of(p))
    bytes[axis.name] = {{"ranks", axis.ranks}, {"bytes", axis.bytes}, {"link", where(axis.inside)}};
  for (const Advice& a : advice)
    ideas.push_back({{"change", a.change}, {"setting", a.setting}, {"time_saved", a.saved}});
  const auto or_null = [](double value) { return value > 0 ? Json(value) : Json(nullptr); };
  const Json report = {
      {"memory_per_rank_bytes", p.memory.total()},
      {"step_seconds", p.step_seconds()},
      {"tokens_per_second", p.tokens_per_second},
      {"mfu", p.mfu},
      {"run_seconds", p.run_seconds},
      {"kilowatt_hours", or_null(p.watts / 1000 * p.run_seconds / 3600)},
      {"cost", or_null(p.cost)},
      {"kilograms_co2", or_null(p.kilograms_co2)},
      {"ranks", p.placement.ranks},
      {"nodes", p.placement.nodes()},
      {"mesh", {{"data", c.mesh.data}, {"context", c.mesh.context}, {"tensor", c.mesh.tensor}}},
      {"scheme", name_of(p.scheme.scheme)},
      {"keep", model::to_string(p.keep)},
      {"machine", {{"name", machine.name}, {"file", machine.path}}},
      {"memory", memory},
      {"seconds", seconds},
      {"sent_per_rank", bytes},
      {"limited_by", limiting_part(p.seconds)},
      {"would_help", ideas}};
  return report.dump(2);
}

}  // namespace longspan::launcher
