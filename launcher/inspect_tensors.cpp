#include "launcher/inspect_tensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "io/file.hpp"
#include "launcher/progress.hpp"
#include "launcher/table.hpp"
#include "launcher/tensor_rows.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

using io::TensorEntry;
using io::TensorStatistics;

/// "optimizer/exp_avg/" of "optimizer/exp_avg/blocks.0.norm.weight".
std::string group_of(const std::string& name) {
  return name.substr(0, name.rfind('/') + 1);
}
std::string leaf_of(const std::string& name) {
  return name.substr(name.rfind('/') + 1);
}

std::size_t shards_of(const TensorEntry& tensor) {
  std::vector<int> shards;
  shards.reserve(tensor.blocks.size());
  for (const auto& block : tensor.blocks) shards.push_back(block.shard);
  std::sort(shards.begin(), shards.end());
  return static_cast<std::size_t>(std::unique(shards.begin(), shards.end()) - shards.begin());
}

/// The statistics of the elements of both together.
TensorStatistics pooled(const TensorStatistics& a, const TensorStatistics& b) {
  TensorStatistics s;
  s.count = a.count + b.count;
  s.nan = a.nan + b.nan;
  s.inf = a.inf + b.inf;
  const auto finite = [](const TensorStatistics& t) {
    return static_cast<double>(t.count - t.nan - t.inf);
  };
  const double na = finite(a), nb = finite(b), n = na + nb;
  if (n == 0) return s;
  const double apart = b.mean - a.mean;  // Chan, Golub & LeVeque 1979, eq. 2.1
  s.mean = (na * a.mean + nb * b.mean) / n;
  s.standard_deviation =
      std::sqrt((na * a.standard_deviation * a.standard_deviation +
                 nb * b.standard_deviation * b.standard_deviation + apart * apart * na * nb / n) /
                n);
  s.norm = std::hypot(a.norm, b.norm);
  s.minimum = na == 0 ? b.minimum : nb == 0 ? a.minimum : std::min(a.minimum, b.minimum);
  s.maximum = na == 0 ? b.maximum : nb == 0 ? a.maximum : std::max(a.maximum, b.maximum);
  return s;
}

/// How the tensors hang together: which stand on lines of their own, which beside a weight.
struct Tree {
  explicit Tree(const TensorList& all) : tensors(all) {
    for (std::size_t i = 0; i < all.size(); ++i) by_name[all[i]->name] = i;
    states.resize(all.size());
    beside.resize(all.size(), false);
    for (std::size_t i = 0; i < all.size(); ++i) {
      const std::string group = group_of(all[i]->name);
      const auto owner = by_name.find("model/" + leaf_of(all[i]->name));
      if (group == "model/" || group.empty() || owner == by_name.end() ||
          all[owner->second]->global_shape != all[i]->global_shape)
        continue;
      const std::string kind = leaf_of(group.substr(0, group.size() - 1));
      states[owner->second][kind] = i;
      beside[i] = true;
      if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
    }
  }
  const TensorList& tensors;
  std::map<std::string, std::size_t> by_name;
  std::vector<std::map<std::string, std::size_t>> states;  ///< of each weight, by kind
  std::vector<bool> beside;                                ///< a state shown with its weight
  std::vector<std::string> kinds;                          ///< "exp_avg", "exp_avg_sq"

  /// What must be equal for two tensors to share a line.
  std::string likeness(std::size_t i) const {
    const TensorEntry& tensor = *tensors[i];
    std::string text = fmt::format("{} {} {}", to_string(tensor.global_shape),
                                   name_of(tensor.dtype), shards_of(tensor));
    for (const auto& [kind, state] : states[i])
      text += fmt::format(" {} {}", kind, name_of(tensors[state]->dtype));
    return text;
  }
};

struct Sum {
  std::int64_t tensors = 0, elements = 0, bytes = 0;
  std::vector<std::string> types;
  void add(const TensorEntry& tensor) {
    ++tensors;
    elements += element_count(tensor.global_shape);
    bytes += bytes_of(tensor);
    const std::string type(name_of(tensor.dtype));
    if (std::find(types.begin(), types.end(), type) == types.end()) types.push_back(type);
  }
};

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

/// The pooled statistics of some tensors; empty if one could not be read or none were asked for.
template <class Members>
std::optional<TensorStatistics> statistics_of(const Tree& tree, const StatisticsByName& statistics,
                                              const Members& members) {
  std::optional<TensorStatistics> all;
  for (const std::size_t i : members) {
    const auto found = statistics.find(tree.tensors[i]->name);
    if (found == statistics.end()) return std::nullopt;
    all = all ? pooled(*all, found->second) : found->second;
  }
  return all;
}

class TreeText {
 public:
  TreeText(const Tree& tree, const StatisticsByName& statistics, bool unfold, const Style& style)
      : tree_(tree), statistics_(statistics), unfold_(unfold), style_(style), table_(columns()) {}

  std::string text() {
    std::vector<std::string> groups;
    std::map<std::string, std::vector<std::size_t>> members;
    for (std::size_t i = 0; i < tree_.tensors.size(); ++i) {
      const std::string group = group_of(tree_.tensors[i]->name);
      if (!members.contains(group)) groups.push_back(group);
      members[group].push_back(i);
    }
    for (const auto& group : groups) add_group(group, members[group]);
    // The table aligns all groups alike; the lines that head them are put in afterwards.
    std::string out;
    const std::string body = table_.empty() ? "" : table_.text(4);
    std::size_t begin = 0;
    for (std::size_t line = 0; begin < body.size(); ++line) {
      if (line > 0) out += headers_[line - 1];
      const auto end = body.find('\n', begin) + 1;
      out.append(body, begin, end - begin);
      begin = end;
    }
    return out + headers_[rows_];
  }

 private:
  std::vector<Table::Column> columns() const {
    const auto title = [&](const std::string& text) { return style_.dim(text); };
    using enum Table::Align;
    std::vector<Table::Column> columns = {
        {title("tensor"), kLeft}, {title("layers")},       {title("shape"), kLeft},
        {title("type"), kLeft},   {title("size")},         {title("shards")},
        {title("mean")},          {title("std")},          {title("norm")},
        {title("min")},           {title("max")},          {title("NaN")},
        {title("Inf")},           {title("states"), kLeft}};
    for (const auto& kind : tree_.kinds) columns.push_back({title(kind + " norm")});
    return columns;
  }

  void add_group(const std::string& group, const std::vector<std::size_t>& members) {
    Sum sum;
    std::vector<std::size_t> own;
    std::vector<std::pair<std::string, std::string>> names;
    for (const std::size_t i : members) {
      sum.add(*tree_.tensors[i]);
      if (tree_.beside[i]) continue;
      own.push_back(i);
      names.emplace_back(leaf_of(tree_.tensors[i]->name), tree_.likeness(i));
    }
    headers_[rows_] += fmt::format(
        "  {}  {}, {}, {}, {}{}\n", style_.bold(group.empty() ? "/" : group),
        counted(sum.tensors, "tensor"), counted(sum.elements, "element"), joined(sum.types),
        io::format_bytes(sum.bytes), own.empty() ? ": beside their weights" : "");
    for (const TensorRow& row : rows_of(names, unfold_)) {
      std::vector<std::size_t> of_row;
      for (const std::size_t member : row.members) of_row.push_back(own[member]);
      add_row(row.name, of_row);
    }
  }

  void add_row(const std::string& name, const std::vector<std::size_t>& members) {
    const TensorEntry& first = *tree_.tensors[members[0]];
    std::int64_t bytes = 0;
    for (const std::size_t i : members) bytes += bytes_of(*tree_.tensors[i]);
    std::vector<std::string> cells = {name,
                                      members.size() > 1 ? fmt::format("{} x", members.size()) : "",
                                      to_string(first.global_shape),
                                      std::string(name_of(first.dtype)),
                                      io::format_bytes(bytes),
                                      fmt::format("{}", shards_of(first))};
    add_statistics(members, cells);
    const auto& states = tree_.states[members[0]];
    std::vector<std::string> words;
    for (const auto& [kind, state] : states)
      words.push_back(fmt::format("{} {}", kind, name_of(tree_.tensors[state]->dtype)));
    cells.push_back(statistics_.empty() ? joined(words) : "");
    for (const auto& kind : tree_.kinds) {
      std::vector<std::size_t> of_kind;
      for (const std::size_t i : members)
        if (const auto at = tree_.states[i].find(kind); at != tree_.states[i].end())
          of_kind.push_back(at->second);
      const auto s = statistics_of(tree_, statistics_, of_kind);
      cells.push_back(!s                    ? ""
                      : s->nan + s->inf > 0 ? style_.bad(not_finite(*s))
                                            : short_number(s->norm));
    }
    table_.add(std::move(cells));
    ++rows_;
  }

  void add_statistics(const std::vector<std::size_t>& members, std::vector<std::string>& cells) {
    const auto s = statistics_of(tree_, statistics_, members);
    const std::size_t end = cells.size() + 7;
    if (s && s->nan + s->inf == s->count && s->count > 0) {
      cells.resize(end - 2, style_.bad("NaN"));
    } else if (s) {
      for (const double value : {s->mean, s->standard_deviation, s->norm, s->minimum, s->maximum})
        cells.push_back(short_number(value));
    } else if (!statistics_.empty()) {
      cells.push_back(style_.bad("unreadable"));
    }
    cells.resize(end - 2);
    cells.push_back(s && s->nan > 0 ? style_.bad(grouped(s->nan)) : "");
    cells.push_back(s && s->inf > 0 ? style_.bad(grouped(s->inf)) : "");
  }

  static std::string not_finite(const TensorStatistics& s) {
    return s.inf == 0   ? fmt::format("{} NaN", grouped(s.nan))
           : s.nan == 0 ? fmt::format("{} Inf", grouped(s.inf))
                        : fmt::format("{} NaN, {} Inf", grouped(s.nan), grouped(s.inf));
  }

  const Tree& tree_;
  const StatisticsByName& statistics_;
  bool unfold_;
  const Style& style_;
  Table table_;
  std::size_t rows_ = 0;
  std::map<std::size_t, std::string> headers_;  ///< lines before row i
};

}  // namespace

std::int64_t bytes_of(const TensorEntry& tensor) {
  return element_count(tensor.global_shape) * static_cast<std::int64_t>(size_of(tensor.dtype));
}

std::int64_t elements_of(const std::vector<TensorEntry>& tensors, const std::string& group) {
  std::int64_t count = 0;
  for (const auto& tensor : tensors)
    if (tensor.name.starts_with(group)) count += element_count(tensor.global_shape);
  return count;
}

StatisticsByName gather_statistics(io::CheckpointReader& reader, const TensorList& tensors,
                                   std::vector<io::VerifyProblem>& problems) {
  StatisticsByName statistics;
  Progress progress;
  std::int64_t total = 0, done = 0;
  for (const TensorEntry* tensor : tensors) total += bytes_of(*tensor);
  for (const TensorEntry* tensor : tensors) {
    progress.update("reading", "B", done, total);
    try {
      statistics[tensor->name] = reader.statistics(tensor->name);
    } catch (const Error& damaged) {  // what is left is still worth showing
      problems.push_back({"", tensor->name, damaged.what()});
    }
    done += bytes_of(*tensor);
  }
  return statistics;
}

std::string tensors_text(const TensorList& tensors, const StatisticsByName& statistics, bool unfold,
                         const Style& style) {
  if (tensors.empty()) return "";
  std::string text = TreeText(Tree(tensors), statistics, unfold, style).text();
  std::int64_t nan = 0, inf = 0;
  std::vector<std::string> ill;
  for (const auto& [name, s] : statistics) {
    nan += s.nan, inf += s.inf;
    if (s.nan + s.inf > 0) ill.push_back(name);
  }
  if (ill.empty()) return text;
  constexpr std::size_t kNamed = 8;
  const std::size_t more = ill.size() > kNamed ? ill.size() - kNamed : 0;
  ill.resize(ill.size() - more);
  return text +
         style.bad(fmt::format("\n  {} NaN and {} Inf: the run has diverged\n", grouped(nan),
                               grouped(inf))) +
         fmt::format("  in {}{}\n", joined(ill),
                     more > 0 ? fmt::format(" and {} more (--unfold --stats)", more) : "");
}

nlohmann::json tensor_json(const TensorEntry& tensor, const StatisticsByName& statistics) {
  nlohmann::json entry = {
      {"name", tensor.name},          {"dtype", name_of(tensor.dtype)},
      {"shape", tensor.global_shape}, {"elements", element_count(tensor.global_shape)},
      {"bytes", bytes_of(tensor)},    {"blocks", tensor.blocks.size()},
      {"shards", shards_of(tensor)}};
  const auto found = statistics.find(tensor.name);
  if (found == statistics.end()) return entry;
  const TensorStatistics& s = found->second;
  nlohmann::json& out = entry["statistics"];
  out = {{"count", s.count}, {"nan", s.nan}, {"inf", s.inf}};
  const std::pair<const char*, double> values[] = {{"mean", s.mean},
                                                   {"std", s.standard_deviation},
                                                   {"norm", s.norm},
                                                   {"min", s.minimum},
                                                   {"max", s.maximum}};
  for (const auto& [name, value] : values)
    out[name] = s.count > s.nan + s.inf ? nlohmann::json(value) : nlohmann::json(nullptr);
  return entry;
}

}  // namespace longspan::launcher
