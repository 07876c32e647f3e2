#include "launcher/study.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <numeric>
#include <optional>
#include <set>
#include <sstream>

#include "launcher/memory_plan.hpp"
#include "launcher/plan.hpp"
#include "launcher/run_layout.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

using model::AttentionSchemeKind;

std::string one_line(std::string text) {
  for (std::size_t at; (at = text.find('\n')) != std::string::npos;) text.replace(at, 1, "; ");
  return text;
}

/// The mesh of a pattern on so many ranks; nothing if they do not divide.
std::optional<MeshShape> mesh_of(const MeshConfig& pattern, int ranks) {
  try {
    return resolve_mesh(pattern, ranks);
  } catch (const Error&) {
    return std::nullopt;
  }
}

bool has_own_ranks(const MeshConfig& mesh) {
  return mesh.data > 0 && mesh.context > 0 && mesh.tensor > 0;
}

int known_ranks(const MeshConfig& mesh) {
  return std::max(1, mesh.data) * std::max(1, mesh.context) * std::max(1, mesh.tensor);
}

/// A pattern on a number of ranks of the study.
struct Combination {
  const MeshConfig* pattern;
  int ranks;
  std::optional<MeshShape> mesh;
};

std::vector<Combination> combinations(const StudySpec& spec) {
  std::vector<Combination> all;
  for (const MeshConfig& pattern : spec.meshes)
    for (const int ranks : spec.ranks)
      if (!has_own_ranks(pattern) || known_ranks(pattern) == ranks)
        all.push_back({&pattern, ranks, mesh_of(pattern, ranks)});
  return all;
}

/// What has no point because of the ranks alone.
void leave_out_by_ranks(const StudySpec& spec, const std::vector<Combination>& all, Study& study) {
  for (const MeshConfig& pattern : spec.meshes)
    if (has_own_ranks(pattern) &&
        std::find(spec.ranks.begin(), spec.ranks.end(), known_ranks(pattern)) == spec.ranks.end())
      study.left_out.push_back(
          {mesh_text(pattern), fmt::format("it has {} ranks, which --ranks {} does not name",
                                           known_ranks(pattern), fmt::join(spec.ranks, ","))});
  for (const Combination& c : all)
    if (!c.mesh)
      study.left_out.push_back(
          {fmt::format("{} on {} ranks", mesh_text(*c.pattern), c.ranks),
           fmt::format("{} ranks are not a multiple of {}", c.ranks, known_ranks(*c.pattern))});
  for (const int ranks : spec.ranks)
    if (std::none_of(all.begin(), all.end(),
                     [&](const Combination& c) { return c.ranks == ranks; }))
      study.left_out.push_back(
          {fmt::format("{} rank{}", ranks, ranks == 1 ? "" : "s"),
           "no mesh has so many: name one with --mesh, or one with an N, which fits all"});
}

/// The batch of a step where it does not grow.
std::int64_t fixed_batch(const StudySpec& spec, const std::vector<Combination>& all) {
  if (spec.config.train.global_batch > 0) return spec.config.train.global_batch;
  std::int64_t data = 1;
  constexpr std::int64_t kMost = 1 << 20;
  for (const Combination& c : all)
    if (c.mesh && data < kMost) data = std::lcm(data, std::int64_t{c.mesh->data});
  const std::int64_t batch = data * spec.config.train.micro_batch;
  if (batch >= kMost)
    fail_usage(
        "scale: the smallest batch that all meshes can split has {} sequences or more: set "
        "train.global-batch, or name fewer meshes",
        batch);
  return batch;
}

std::string series_name(const MeshConfig& pattern, AttentionSchemeKind scheme,
                        std::int64_t length) {
  // The scheme of one context rank is no scheme.
  return fmt::format(
      "{}{} {}", has_own_ranks(pattern) ? "given meshes" : mesh_text(pattern),
      pattern.context == 1 && !has_own_ranks(pattern) ? "" : fmt::format(" {}", name_of(scheme)),
      length);
}

int index_of(std::vector<std::string>& names, const std::string& name) {
  const auto at = std::find(names.begin(), names.end(), name);
  if (at != names.end()) return static_cast<int>(at - names.begin());
  names.push_back(name);
  return static_cast<int>(names.size()) - 1;
}

Placement placement_of(const StudySpec& spec, int ranks) {
  return {ranks, spec.ranks_per_node > 0 ? spec.ranks_per_node : ranks};
}

model::SchemeChoice choice_of(const StudySpec& spec, const StudyPoint& point,
                              const RunConfig& config) {
  return scheme_of(config, point.mesh,
                   placement_of(spec, point.ranks()).context_per_node(point.mesh));
}

/// What auto comes to; auto where the point has a fault, which objection() finds.
AttentionSchemeKind what_auto_takes(const StudySpec& spec, const StudyPoint& point) {
  try {
    return choice_of(spec, point, config_of(spec, point)).scheme;
  } catch (const Error&) {
    return AttentionSchemeKind::kAuto;
  }
}

/// Why a point cannot be run, in one line; empty = it can.
std::string objection(const StudySpec& spec, const StudyPoint& point) {
  if (spec.ranks_per_node > 0 && point.ranks() > spec.ranks_per_node &&
      point.ranks() % spec.ranks_per_node != 0)
    return fmt::format("{} ranks are not a multiple of slurm.ranks-per-node={}", point.ranks(),
                       spec.ranks_per_node);
  try {
    const RunConfig config = config_of(spec, point);
    const model::SchemeChoice choice = choice_of(spec, point, config);
    if (point.scheme_matters() && choice.scheme != point.scheme)
      return fmt::format("attention.scheme={} would be {}: {}", name_of(point.scheme),
                         name_of(choice.scheme), choice.why);
    if (config.memory.budget > 0)
      plan_memory(config, rank_share_of(config, point.mesh, choice),
                  {config.memory.budget, "memory.budget"});
    return "";
  } catch (const Error& e) {
    return one_line(e.what());
  }
}

}  // namespace

RunConfig config_of(const StudySpec& spec, const StudyPoint& point) {
  RunConfig config = spec.config;
  config.mesh.data = point.mesh.data, config.mesh.context = point.mesh.context,
  config.mesh.tensor = point.mesh.tensor, config.mesh.elastic = false;
  if (point.scheme_matters()) config.attention.scheme = point.scheme;
  config.data.sequence_length = point.length;
  config.train.global_batch = point.batch;
  if (const auto problems = problems_of(config); !problems.empty())
    throw Error(fmt::format("{}", fmt::join(problems, "\n")), ExitStatus::kUsage);
  return resolved_for(std::move(config), point.ranks());
}

std::vector<std::string> settings_of(const StudyPoint& point) {
  std::vector<std::string> settings = {"--mesh.data",
                                       std::to_string(point.mesh.data),
                                       "--mesh.context",
                                       std::to_string(point.mesh.context),
                                       "--mesh.tensor",
                                       std::to_string(point.mesh.tensor),
                                       "--data.sequence-length",
                                       std::to_string(point.length),
                                       "--train.global-batch",
                                       std::to_string(point.batch)};
  if (point.scheme_matters())
    settings.insert(settings.end(), {"--attention.scheme", name_of(point.scheme)});
  return settings;
}

Study plan_study(const StudySpec& spec) {
  Study study;
  const std::vector<Combination> all = combinations(spec);
  leave_out_by_ranks(spec, all, study);
  const std::int64_t batch = spec.scaling == Scaling::kWeakBatch ? 0 : fixed_batch(spec, all);
  const std::int64_t rank_batch = spec.config.train.global_batch > 0
                                      ? spec.config.train.global_batch
                                      : spec.config.train.micro_batch;
  std::set<std::string> looked_at;
  for (const std::int64_t length : spec.lengths)
    for (const AttentionSchemeKind scheme : spec.schemes)
      for (const Combination& c : all) {
        if (!c.mesh) continue;
        StudyPoint point;
        point.mesh = *c.mesh;
        if (point.scheme_matters()) point.scheme = scheme;
        point.length = spec.scaling == Scaling::kWeakLength ? length * c.ranks : length;
        point.batch = spec.scaling == Scaling::kWeakBatch ? rank_batch * c.ranks : batch;
        point.nodes = spec.ranks_per_node > 0 ? std::max(1, c.ranks / spec.ranks_per_node) : 1;
        if (point.scheme == AttentionSchemeKind::kAuto) point.scheme = what_auto_takes(spec, point);
        point.name = fmt::format(
            "{}-rank{}-{}{}-{}-b{}", c.ranks, c.ranks == 1 ? "" : "s", mesh_text(point.mesh),
            point.scheme_matters() ? fmt::format("-{}", name_of(point.scheme)) : "", point.length,
            point.batch);
        const std::string series = series_name(*c.pattern, scheme, length);
        const auto known =
            std::find_if(study.points.begin(), study.points.end(),
                         [&](const StudyPoint& other) { return other.name == point.name; });
        if (known != study.points.end()) {
          const int index = index_of(study.series, series);
          if (std::find(known->series.begin(), known->series.end(), index) == known->series.end())
            known->series.push_back(index);
          continue;
        }
        if (!looked_at.insert(point.name).second) continue;
        if (const std::string why = objection(spec, point); !why.empty()) {
          study.left_out.push_back({point.name, why});
          continue;
        }
        point.series.push_back(index_of(study.series, series));
        study.points.push_back(std::move(point));
      }
  if (study.points.empty()) {
    std::string why;
    for (const LeftOut& left : study.left_out)
      why += fmt::format("\n  {}: {}", left.name, left.why);
    fail_usage("scale: no point of the study can be run:{}", why);
  }
  return study;
}

MeshConfig parse_mesh(const std::string& text) {
  std::vector<int> sizes;
  std::istringstream parts(text);
  int open = 0;
  bool good = !text.empty() && text.back() != 'x';
  for (std::string part; std::getline(parts, part, 'x');) {
    int size = 0;
    if (part == "N") {
      ++open;
    } else {
      const char* const end = part.data() + part.size();
      const auto [rest, error] = std::from_chars(part.data(), end, size);
      good = good && error == std::errc() && rest == end && size > 0 && size <= (1 << 20);
    }
    sizes.push_back(size);
  }
  if (!good || sizes.size() != 3 || open > 1)
    fail_usage(
        "scale: --mesh {}: a mesh is DATAxCONTEXTxTENSOR, such as 2x1x1, or 1xNx1 where N is as "
        "many as there are ranks left (at most one N)",
        text);
  MeshConfig mesh;
  mesh.data = sizes[0], mesh.context = sizes[1], mesh.tensor = sizes[2];
  if (std::int64_t{std::max(1, sizes[0])} * std::max(1, sizes[1]) * std::max(1, sizes[2]) >
      (1 << 20))
    fail_usage("scale: --mesh {}: more than {} ranks", text, 1 << 20);
  return mesh;
}

std::string mesh_text(const MeshConfig& mesh) {
  const auto part = [](int size) { return size > 0 ? std::to_string(size) : "N"; };
  return part(mesh.data) + "x" + part(mesh.context) + "x" + part(mesh.tensor);
}

std::string mesh_text(const MeshShape& mesh) {
  return fmt::format("{}x{}x{}", mesh.data, mesh.context, mesh.tensor);
}

std::string scheme_text(const StudyPoint& point) {
  return point.scheme_matters() ? name_of(point.scheme) : "-";
}

std::string scaling_text(Scaling scaling) {
  return scaling == Scaling::kStrong      ? "strong"
         : scaling == Scaling::kWeakBatch ? "weak by batch"
                                          : "weak by length";
}

}  // namespace longspan::launcher
