#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "launcher/checkpoint_diff.hpp"
#include "launcher/progress.hpp"
#include "launcher/table.hpp"
#include "launcher/tensor_rows.hpp"

namespace longspan::launcher {
namespace {

using Kind = TensorDiff::Kind;

const char* word_of(Kind kind) {
  switch (kind) {
    case Kind::kEqual:
      return "equal";
    case Kind::kValues:
      return "values";
    case Kind::kShape:
      return "shape";
    case Kind::kType:
      return "type";
    case Kind::kOnlyFirst:
      return "only in first";
    case Kind::kOnlySecond:
      return "only in second";
  }
  return "";
}

/// "[256, 64] f32", "[256, 64] f32 | [512, 64] f32" where the two are not the same.
std::string shape_text(const TensorDiff& t) {
  const std::string one = fmt::format("{} {}", to_string(t.shape), name_of(t.dtype));
  const std::string other = fmt::format("{} {}", to_string(t.other_shape), name_of(t.other_dtype));
  return one == other ? one : one + " | " + other;
}

/// Some tensors as if they were one.
TensorDiff pooled(const std::vector<TensorDiff>& tensors, const std::vector<std::size_t>& members) {
  TensorDiff all = tensors[members[0]];
  for (std::size_t i = 1; i < members.size(); ++i) {
    const TensorDiff& t = tensors[members[i]];
    all.elements += t.elements;
    all.differing += t.differing;
    all.not_finite += t.not_finite;
    all.squares += t.squares;
    all.first_squares += t.first_squares;
    if (t.largest > all.largest) all.largest = t.largest;
    all.largest_at.clear();  // a place in which of them?
  }
  return all;
}

std::string tensors_text(const CheckpointDiff& diff, bool unfold, const Style& style) {
  using enum Table::Align;
  Table table({{style.dim("tensor"), kLeft},
               {style.dim("shape"), kLeft},
               {style.dim("differs"), kLeft},
               {style.dim("elements that differ")},
               {style.dim("%")},
               {style.dim("max |a-b|")},
               {style.dim("at"), kLeft},
               {style.dim("relative L2")},
               {style.dim("NaN or Inf in one")}});
  std::vector<std::size_t> shown;
  std::vector<std::pair<std::string, std::string>> names;
  for (std::size_t i = 0; i < diff.tensors.size(); ++i) {
    const TensorDiff& t = diff.tensors[i];
    if (t.kind == Kind::kEqual && !unfold) continue;
    shown.push_back(i);
    names.emplace_back(t.name, fmt::format("{} {}", word_of(t.kind), shape_text(t)));
  }
  for (const TensorRow& row : rows_of(names, unfold)) {
    std::vector<std::size_t> members;
    for (const std::size_t m : row.members) members.push_back(shown[m]);
    const TensorDiff t = pooled(diff.tensors, members);
    std::vector<std::string> cells = {row.name, shape_text(t), word_of(t.kind)};
    if (t.kind == Kind::kValues) {
      cells.push_back(grouped(t.differing));
      cells.push_back(fmt::format(
          "{:.3g}", 100.0 * static_cast<double>(t.differing) / static_cast<double>(t.elements)));
      cells.push_back(short_number(t.largest));
      cells.push_back(t.largest_at.empty() ? "" : to_string(t.largest_at));
      cells.push_back(short_number(t.relative_l2()));
      cells.push_back(t.not_finite > 0 ? style.bad(grouped(t.not_finite)) : "");
    }
    table.add(std::move(cells));
  }
  return table.empty() ? "" : fmt::format("\n{}", table.text(2));
}

std::string facts_text(const char* title, const std::vector<FactDiff>& facts, const Style& style) {
  if (facts.empty()) return "";
  Table table({{style.dim(title), Table::Align::kLeft},
               {style.dim("a"), Table::Align::kLeft},
               {style.dim("b"), Table::Align::kLeft}});
  for (const auto& fact : facts) table.add({fact.name, fact.first, fact.second});
  return fmt::format("\n{}", table.text(2));
}

std::map<Kind, std::int64_t> count_kinds(const CheckpointDiff& diff) {
  std::map<Kind, std::int64_t> counts;
  for (const auto& t : diff.tensors) ++counts[t.kind];
  return counts;
}

nlohmann::ordered_json facts_json(const std::vector<FactDiff>& facts) {
  auto list = nlohmann::ordered_json::array();
  for (const auto& fact : facts)
    list.push_back({{"name", fact.name}, {"first", fact.first}, {"second", fact.second}});
  return list;
}

}  // namespace

std::string diff_text(const CheckpointDiff& diff, bool unfold, const Style& style) {
  std::string text = fmt::format("a: {}\nb: {}\n", diff.first, diff.second);
  text += tensors_text(diff, unfold, style);
  text += facts_text("place in the training", diff.place, style);
  text += facts_text("made", diff.made, style);
  text += facts_text("setting", diff.settings, style);
  std::string counts;
  for (const auto& [kind, count] : count_kinds(diff))
    counts += fmt::format("{}{} {}", counts.empty() ? "" : ", ", grouped(count),
                          kind == Kind::kValues || kind == Kind::kShape || kind == Kind::kType
                              ? fmt::format("of other {}", kind == Kind::kValues  ? "values"
                                                           : kind == Kind::kShape ? "shape"
                                                                                  : "type")
                              : word_of(kind));
  const std::string unread =
      diff.unread == 0 ? ""
                       : fmt::format(" ({} by {} hashes, not read: --verify reads all)",
                                     grouped(diff.unread), diff.unread == 1 ? "its" : "their");
  return text + fmt::format("\n  {}: {} tensors: {}{}\n",
                            diff.equal() ? style.good("equal") : style.bad("different"),
                            grouped(static_cast<std::int64_t>(diff.tensors.size())), counts,
                            unread);
}

nlohmann::ordered_json diff_json(const CheckpointDiff& diff) {
  using Json = nlohmann::ordered_json;
  const auto finite = [](double value) {
    return std::isfinite(value) ? Json(value) : Json(nullptr);
  };
  Json tensors = Json::array();
  for (const auto& t : diff.tensors) {
    Json entry = {{"name", t.name}, {"differs", word_of(t.kind)}};
    const bool second_only = t.kind == Kind::kOnlySecond, first_only = t.kind == Kind::kOnlyFirst;
    if (!second_only) entry["first"] = {{"dtype", name_of(t.dtype)}, {"shape", t.shape}};
    if (!first_only)
      entry["second"] = {{"dtype", name_of(t.other_dtype)}, {"shape", t.other_shape}};
    if (t.kind == Kind::kEqual || t.kind == Kind::kValues) {
      entry["elements"] = t.elements;
      entry["differing"] = t.differing;
      entry["not_finite"] = t.not_finite;
      entry["max_abs_diff"] = t.largest;
      entry["max_abs_diff_at"] = t.largest_at.empty() ? Json(nullptr) : Json(t.largest_at);
      entry["relative_l2"] = finite(t.relative_l2());
    }
    tensors.push_back(std::move(entry));
  }
  Json counts = Json::object();
  for (const auto& [kind, count] : count_kinds(diff)) counts[word_of(kind)] = count;
  return {{"kind", "diff"},
          {"first", diff.first},
          {"second", diff.second},
          {"equal", diff.equal()},
          {"counts", counts},
          {"equal_by_hash", diff.unread},
          {"place", facts_json(diff.place)},
          {"made", facts_json(diff.made)},
          {"settings", facts_json(diff.settings)},
          {"tensors", tensors}};
}

}  // namespace longspan::launcher
