#include "launcher/inspect_checkpoint.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "io/checkpoint_reader.hpp"
#include "io/file.hpp"
#include "io/statistics.hpp"
#include "launcher/options.hpp"
#include "launcher/progress.hpp"
#include "launcher/table.hpp"

namespace longspan::launcher {
namespace {

using io::TensorEntry;
using io::TensorStatistics;

constexpr std::int64_t kStatisticsBelow =
    2'000'000'000;  // bytes that a person does not mind waiting for
constexpr std::size_t kFirstValues = 8;
constexpr std::size_t kProblemsShown = 40;

/// "optim/exp_avg" of "optim/exp_avg/blocks.0.norm.weight".
std::string kind_of(const std::string& name) {
  const auto slash = name.rfind('/');
  return slash == std::string::npos ? "" : name.substr(0, slash);
}

std::int64_t bytes_of(const TensorEntry& tensor) {
  return element_count(tensor.global_shape) * static_cast<std::int64_t>(size_of(tensor.dtype));
}

std::size_t shards_of(const TensorEntry& tensor) {
  std::set<int> shards;
  for (const auto& block : tensor.blocks) shards.insert(block.shard);
  return shards.size();
}

/// The start of the first row.
std::vector<double> first_values(io::CheckpointReader& reader, const TensorEntry& tensor) {
  Shape shape(tensor.global_shape.size(), 1);
  if (shape.empty() || element_count(tensor.global_shape) == 0) return {};
  shape.back() = std::min<std::int64_t>(tensor.global_shape.back(), kFirstValues);
  std::vector<char> bytes(static_cast<std::size_t>(shape.back()) * size_of(tensor.dtype));
  reader.read({tensor.name, tensor.dtype, tensor.global_shape, Shape(shape.size(), 0), shape,
               bytes.data()});
  std::vector<double> values;
  for (std::size_t at = 0; at < bytes.size(); at += size_of(tensor.dtype))
    values.push_back(io::element_value(tensor.dtype, bytes.data() + at));
  return values;
}

/// Everything the report shows, gathered before anything is formatted.
struct Inspection {
  explicit Inspection(const std::string& path_given) : path(path_given), reader(path_given) {}
  std::string path;
  io::CheckpointReader reader;
  bool verified = false;
  std::vector<io::VerifyProblem> problems;
  std::vector<TensorEntry> listed;  ///< tensors shown one by one
  std::map<std::string, TensorStatistics> statistics;
  std::map<std::string, std::vector<double>> values;
  std::string note;

  std::int64_t bytes() const {
    const auto sizes = reader.shard_bytes();
    return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  }
  std::int64_t parameters() const {
    std::int64_t count = 0;
    for (const auto& tensor : reader.tensors())
      if (tensor.name.starts_with("model/")) count += element_count(tensor.global_shape);
    return count;
  }
};

std::vector<TensorEntry> select(const Inspection& inspection, const std::string& wanted) {
  std::vector<TensorEntry> found;
  std::vector<std::string> names;  // and their ends: "query.weight" is how people remember them
  for (const auto& tensor : inspection.reader.tensors()) {
    if (tensor.name == wanted) return {tensor};
    if (wanted.empty() ? tensor.name.starts_with("model/")
                       : tensor.name.find(wanted) != std::string::npos)
      found.push_back(tensor);
    for (std::size_t at = 0; at != std::string::npos; at = tensor.name.find_first_of("/.", at + 1))
      names.push_back(tensor.name.substr(at == 0 ? 0 : at + 1));
  }
  if (found.empty() && !wanted.empty()) {
    const std::string near = nearest(wanted, names);
    fail_usage("{}: holds no tensor with '{}' in its name{}", inspection.path, wanted,
               near.empty() ? "" : fmt::format(": did you mean {}?", near));
  }
  return found;
}

void gather_statistics(Inspection& inspection, bool asked_for) {
  if (!asked_for && inspection.bytes() >= kStatisticsBelow) {
    inspection.note = fmt::format("no statistics above {} unless asked for: --tensor NAME",
                                  io::format_bytes(kStatisticsBelow));
    return;
  }
  for (const auto& tensor : inspection.listed) {
    try {
      inspection.statistics[tensor.name] = inspection.reader.statistics(tensor.name);
      if (inspection.listed.size() == 1)
        inspection.values[tensor.name] = first_values(inspection.reader, tensor);
    } catch (const Error& damaged) {
      // What is left is still worth showing; after --verify the problem is known already.
      if (!inspection.verified) inspection.problems.push_back({"", tensor.name, damaged.what()});
    }
  }
}

std::string mesh_text(const io::CheckpointFacts& facts) {
  return fmt::format("data {} x context {} x tensor {}, {} rank{}", facts.data, facts.context,
                     facts.tensor, facts.world_size, facts.world_size == 1 ? "" : "s");
}

std::string facts_text(const Inspection& inspection) {
  const io::CheckpointFacts& facts = inspection.reader.facts();
  const auto shards = inspection.reader.shard_files().size();
  Table table({{"", Table::Align::kLeft}, {"", Table::Align::kLeft}});
  table.add({"step", grouped(facts.step)});
  table.add({"tokens seen", grouped(facts.tokens_seen)});
  table.add({"parameters", grouped(inspection.parameters())});
  if (!facts.loss_history.empty())
    table.add({"loss", fmt::format("{:.4f} (lowest of the last {}: {:.4f})",
                                   facts.loss_history.back(), facts.loss_history.size(),
                                   *std::min_element(facts.loss_history.begin(),
                                                     facts.loss_history.end()))});
  table.add({"mesh", mesh_text(facts)});
  table.add({"size", fmt::format("{} in {} shard{}", io::format_bytes(inspection.bytes()), shards,
                                 shards == 1 ? "" : "s")});
  table.add({"written", utc_text(facts.created_unix)});
  table.add({"program", facts.program_version});
  table.add({"data", fmt::format("dataset {}, next sample {}, seed {}", facts.dataset_uuid,
                                 grouped(facts.next_sample), facts.seed)});
  table.add({"uuid", facts.uuid});
  return table.text(2);
}

std::string tensors_text(const Inspection& inspection) {
  Table table({{"tensor", Table::Align::kLeft},
               {"shape", Table::Align::kLeft},
               {"type", Table::Align::kLeft},
               {"size"},
               {"shards"},
               {"mean"},
               {"std"},
               {"norm"},
               {"min"},
               {"max"},
               {"NaN"},
               {"Inf"}});
  std::int64_t nan = 0, inf = 0;
  for (const auto& [name, s] : inspection.statistics) nan += s.nan, inf += s.inf;
  for (const auto& tensor : inspection.listed) {
    std::vector<std::string> row = {
        tensor.name, to_string(tensor.global_shape), std::string(name_of(tensor.dtype)),
        io::format_bytes(bytes_of(tensor)), fmt::format("{}", shards_of(tensor))};
    if (const auto found = inspection.statistics.find(tensor.name);
        found != inspection.statistics.end()) {
      const TensorStatistics& s = found->second;
      for (const double value : {s.mean, s.standard_deviation, s.norm, s.minimum, s.maximum})
        row.push_back(short_number(value));
      row.push_back(nan > 0 ? grouped(s.nan) : "");
      row.push_back(inf > 0 ? grouped(s.inf) : "");
    }
    table.add(std::move(row));
  }
  std::string text = table.text(2);
  for (const auto& [name, values] : inspection.values) {
    text += fmt::format("\n  first values of {}:", name);
    for (const double value : values) text += fmt::format(" {}", short_number(value));
    text += '\n';
  }
  if (nan + inf > 0)
    text +=
        fmt::format("\n  {} NaN and {} Inf: the run has diverged\n", grouped(nan), grouped(inf));
  return text;
}

/// Everything that is not listed, a line per kind.
std::string others_text(const Inspection& inspection) {
  std::set<std::string> listed;
  for (const auto& tensor : inspection.listed) listed.insert(tensor.name);
  struct Sum {
    std::int64_t tensors = 0, elements = 0, bytes = 0;
    std::set<std::string> types;
  };
  std::map<std::string, Sum> kinds;
  for (const auto& tensor : inspection.reader.tensors()) {
    if (listed.contains(tensor.name)) continue;
    Sum& sum = kinds[kind_of(tensor.name)];
    ++sum.tensors;
    sum.elements += element_count(tensor.global_shape);
    sum.bytes += bytes_of(tensor);
    sum.types.insert(std::string(name_of(tensor.dtype)));
  }
  Table table({{"also", Table::Align::kLeft},
               {"tensors"},
               {"elements"},
               {"type", Table::Align::kLeft},
               {"size"}});
  for (const auto& [kind, sum] : kinds)
    table.add({kind.empty() ? "(top level)" : kind, grouped(sum.tensors), grouped(sum.elements),
               fmt::format("{}", fmt::join(sum.types, ", ")), io::format_bytes(sum.bytes)});
  return table.empty() ? "" : fmt::format("\n{}", table.text(2));
}

std::string verify_text(const Inspection& inspection) {
  if (inspection.problems.empty()) {
    if (!inspection.verified) return "";
    std::int64_t blocks = 0, bytes = 0;
    for (const auto& tensor : inspection.reader.tensors()) {
      blocks += static_cast<std::int64_t>(tensor.blocks.size());
      bytes += bytes_of(tensor);
    }
    return fmt::format("\n  verified {} blocks, {}: every hash matches\n", grouped(blocks),
                       io::format_bytes(bytes));
  }
  Table table({{"shard", Table::Align::kLeft},
               {"tensor", Table::Align::kLeft},
               {"problem", Table::Align::kLeft}});
  std::map<std::string, std::int64_t>
      gone;  // tensors lost with their shard: a line per shard is enough
  std::size_t shown = 0;
  for (const auto& problem : inspection.problems) {
    if (!problem.tensor.empty() && problem.what.ends_with("are gone")) {
      ++gone[problem.shard];
    } else if (shown++ < kProblemsShown) {
      table.add({problem.shard, problem.tensor, problem.what});
    }
  }
  for (const auto& [shard, tensors] : gone)
    table.add({shard, counted(tensors, "tensor"), "blocks are gone with the shard"});
  const std::size_t count = inspection.problems.size();
  std::string text =
      fmt::format("\n  DAMAGED: {} problem{}\n{}", count, count == 1 ? "" : "s", table.text(2));
  if (shown > kProblemsShown)
    text += fmt::format("  ... and {} more (--json lists all)\n", shown - kProblemsShown);
  return text +
         "  use another checkpoint of the same run, or restore the named shards from a copy\n";
}

nlohmann::json json_of(const Inspection& inspection, const std::string& wanted) {
  const io::CheckpointFacts& facts = inspection.reader.facts();
  nlohmann::json out = {
      {"kind", "checkpoint"},
      {"path", inspection.path},
      {"step", facts.step},
      {"tokens_seen", facts.tokens_seen},
      {"parameters", inspection.parameters()},
      {"bytes", inspection.bytes()},
      {"uuid", facts.uuid},
      {"created_unix", facts.created_unix},
      {"program_version", facts.program_version},
      {"mesh", {{"data", facts.data}, {"context", facts.context}, {"tensor", facts.tensor}}},
      {"world_size", facts.world_size},
      {"seed", facts.seed},
      {"next_sample", facts.next_sample},
      {"dataset_uuid", facts.dataset_uuid},
      {"loss_history", facts.loss_history},
      {"config", facts.config}};
  const auto files = inspection.reader.shard_files();
  const auto sizes = inspection.reader.shard_bytes();
  out["shards"] = nlohmann::json::array();
  for (std::size_t i = 0; i < files.size(); ++i)
    out["shards"].push_back({{"file", files[i]}, {"bytes", sizes[i]}});
  out["tensors"] = nlohmann::json::array();
  for (const auto& tensor : wanted.empty() ? inspection.reader.tensors() : inspection.listed) {
    nlohmann::json entry = {{"name", tensor.name},
                            {"dtype", name_of(tensor.dtype)},
                            {"shape", tensor.global_shape},
                            {"bytes", bytes_of(tensor)},
                            {"blocks", tensor.blocks.size()}};
    if (const auto found = inspection.statistics.find(tensor.name);
        found != inspection.statistics.end()) {
      const TensorStatistics& s = found->second;
      entry["statistics"] = {{"count", s.count},
                             {"nan", s.nan},
                             {"inf", s.inf},
                             {"mean", s.mean},
                             {"std", s.standard_deviation},
                             {"norm", s.norm},
                             {"min", s.minimum},
                             {"max", s.maximum}};
    }
    if (const auto found = inspection.values.find(tensor.name); found != inspection.values.end())
      entry["first_values"] = found->second;
    out["tensors"].push_back(std::move(entry));
  }
  out["verified"] = inspection.verified;
  out["problems"] = nlohmann::json::array();
  for (const auto& problem : inspection.problems)
    out["problems"].push_back(
        {{"shard", problem.shard}, {"tensor", problem.tensor}, {"what", problem.what}});
  return out;
}

}  // namespace

CheckpointReport report_checkpoint(const std::string& path, bool verify,
                                   const std::string& tensor) {
  Inspection inspection(path);
  inspection.listed = select(inspection, tensor);
  if (verify) {
    Progress progress;
    inspection.problems = inspection.reader.verify([&](std::int64_t done, std::int64_t total) {
      progress.update("verifying", "B", done, total);
    });
    inspection.verified = true;
  }
  gather_statistics(inspection, !tensor.empty());
  CheckpointReport report;
  report.text = fmt::format("checkpoint {}\n\n{}\n{}", path, facts_text(inspection),
                            tensors_text(inspection));
  if (tensor.empty()) report.text += others_text(inspection);
  if (!inspection.note.empty()) report.text += fmt::format("\n  {}\n", inspection.note);
  report.text += verify_text(inspection);
  report.json = json_of(inspection, tensor);
  if (!inspection.problems.empty()) report.status = ExitStatus::kDamaged;
  return report;
}

ExitStatus inspect_checkpoint(const std::string& path, bool verify, bool json,
                              const std::string& tensor) {
  const CheckpointReport report = report_checkpoint(path, verify, tensor);
  fmt::print("{}", json ? fmt::format("{}\n", report.json.dump(2)) : report.text);
  return report.status;
}

}  // namespace longspan::launcher
