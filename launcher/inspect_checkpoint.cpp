#include "launcher/inspect_checkpoint.hpp"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "io/checkpoint_reader.hpp"
#include "io/file.hpp"
#include "io/statistics.hpp"
#include "launcher/checkpoint_diff.hpp"
#include "launcher/ini.hpp"
#include "launcher/inspect_tensors.hpp"
#include "launcher/inspect_values.hpp"
#include "launcher/options.hpp"
#include "launcher/progress.hpp"
#include "launcher/table.hpp"
#include "launcher/tensor_slice.hpp"
#include "launcher/text.hpp"

namespace longspan::launcher {
namespace {

using io::TensorEntry;

constexpr std::int64_t kFirstValues = 8;
constexpr std::size_t kProblemsShown = 40;

/// Everything the report shows, gathered before anything is formatted.
struct Inspection {
  explicit Inspection(const std::string& path_given) : path(path_given), reader(path_given) {}
  std::string path;
  io::CheckpointReader reader;
  bool verified = false;
  std::vector<io::VerifyProblem> problems;
  TensorList listed;
  StatisticsByName statistics;
  std::vector<std::string> first_values;  ///< of the only tensor listed

  std::int64_t bytes() const {
    const auto sizes = reader.shard_bytes();
    return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  }
};

TensorList select(const Inspection& inspection, const std::string& wanted) {
  const auto& tensors = inspection.reader.tensors();
  TensorList found;
  if (wanted.empty()) {
    for (const auto& tensor : tensors) found.push_back(&tensor);
    return found;
  }
  std::vector<std::string> names;  // and their ends: "query.weight" is how people remember them
  for (const auto& tensor : tensors) {
    if (tensor.name == wanted) return {&tensor};
    if (tensor.name.find(wanted) != std::string::npos) found.push_back(&tensor);
    for (std::size_t at = 0; at != std::string::npos; at = tensor.name.find_first_of("/.", at + 1))
      names.push_back(tensor.name.substr(at == 0 ? 0 : at + 1));
  }
  if (found.empty()) {
    const std::string near = nearest(wanted, names);
    fail_usage("{}: holds no tensor with '{}' in its name{}", inspection.path, wanted,
               near.empty() ? "" : fmt::format(": did you mean {}?", near));
  }
  return found;
}

/// The one tensor whose values are asked for: of several the model's, as in "norm.weight" for
/// model/norm.weight and its optimizer states.
const TensorEntry& select_one(const Inspection& inspection, const std::string& wanted) {
  const auto found = select(inspection, wanted);
  if (found.size() == 1) return *found[0];
  const auto whole = std::find_if(found.begin(), found.end(), [&](const TensorEntry* tensor) {
    return tensor->name == "model/" + wanted;
  });
  if (whole != found.end()) return **whole;
  constexpr std::size_t kNamed = 4;
  std::string names;
  for (std::size_t i = 0; i < std::min(found.size(), kNamed); ++i)
    names += fmt::format("{}{}", i == 0 ? "" : ", ", found[i]->name);
  fail_usage("{}: {} tensors have '{}' in their names, a slice is of one: {}{}", inspection.path,
             found.size(), wanted, names, found.size() > kNamed ? ", ..." : "");
}

/// What sizes tell: shards that are missing or cut off, and the tensors lost with them.
void look_at_shards(Inspection& inspection) {
  const auto files = inspection.reader.shard_files();
  const auto sizes = inspection.reader.shard_bytes();
  std::vector<std::int64_t> found;
  bool good = true;
  for (std::size_t i = 0; i < files.size(); ++i) {
    found.push_back(io::file_size(inspection.path + "/" + files[i]));
    if (found[i] == sizes[i]) continue;
    good = false;
    inspection.problems.push_back(
        {files[i], "",
         found[i] < 0
             ? "the shard is missing"
             : fmt::format("the shard has {} bytes, {} were written", found[i], sizes[i])});
  }
  if (good) return;
  for (const auto& tensor : inspection.reader.tensors())
    for (const auto& block : tensor.blocks) {
      const auto i = static_cast<std::size_t>(block.shard);
      const std::int64_t bytes =
          element_count(block.shape) * static_cast<std::int64_t>(size_of(tensor.dtype));
      if (found[i] < static_cast<std::int64_t>(block.file_offset) + bytes)
        inspection.problems.push_back(
            {files[i], tensor.name, fmt::format("{} are gone", io::format_bytes(bytes))});
    }
}

/// The start of the first row.
std::vector<std::string> first_values(io::CheckpointReader& reader, const TensorEntry& tensor) {
  if (element_count(tensor.global_shape) == 0) return {};
  Shape shape(tensor.global_shape.size(), 1);
  shape.back() = std::min(tensor.global_shape.back(), kFirstValues);
  std::vector<char> bytes(static_cast<std::size_t>(shape.back()) * size_of(tensor.dtype));
  reader.read({tensor.name, tensor.dtype, tensor.global_shape, Shape(shape.size(), 0), shape,
               bytes.data()});
  std::vector<std::string> values;
  for (std::size_t at = 0; at < bytes.size(); at += size_of(tensor.dtype))
    values.push_back(value_text(tensor.dtype, bytes.data() + at));
  return values;
}

std::string facts_text(const Inspection& inspection, const Style& style) {
  const io::CheckpointFacts& facts = inspection.reader.facts();
  const auto shards = static_cast<std::int64_t>(inspection.reader.shard_files().size());
  const auto& tensors = inspection.reader.tensors();
  Table table({{"", Table::Align::kLeft}, {"", Table::Align::kLeft}});
  const auto line = [&](const char* name, const std::string& value) {
    table.add({style.dim(name), value});
  };
  line("step", style.bold(grouped(facts.step)));
  line("tokens seen", grouped(facts.tokens_seen));
  line("parameters", grouped(elements_of(tensors, "model/")));
  if (!facts.loss_history.empty())
    line("loss",
         fmt::format("{:.4f} (lowest of the last {}: {:.4f})", facts.loss_history.back(),
                     facts.loss_history.size(),
                     *std::min_element(facts.loss_history.begin(), facts.loss_history.end())));
  line("mesh", fmt::format("data {} x context {} x tensor {}, {}", facts.data, facts.context,
                           facts.tensor, counted(facts.world_size, "rank")));
  line("size",
       fmt::format("{} in {}", io::format_bytes(inspection.bytes()), counted(shards, "shard")));
  line("written", utc_text(facts.created_unix));
  line("program", facts.program_version);
  line("data", fmt::format("dataset {}, next sample {}, seed {}", facts.dataset_uuid,
                           grouped(facts.next_sample), facts.seed));
  line("uuid", facts.uuid);
  return table.text(2);
}

using Settings = std::vector<std::pair<std::string, std::string>>;

Settings settings_of(const io::CheckpointFacts& facts) {
  Settings settings;
  std::vector<std::string> ignored;  // of a program that wrote what this one does not know
  for (const auto& entry : parse_ini_lines(facts.config, "", ignored))
    settings.emplace_back(entry.name, entry.value);
  return settings;
}

/// The settings that are not this program's defaults, section by section.
std::string settings_text(const io::CheckpointFacts& facts, const Style& style) {
  std::map<std::string, std::string> defaults;
  for (const auto& option : describe_options()) defaults[option.name] = option.default_value;
  std::vector<std::pair<std::string, std::string>> sections;
  for (const auto& [name, value] : settings_of(facts)) {
    const auto known = defaults.find(name);
    if (known != defaults.end() && known->second == value) continue;
    const auto dot = name.find('.');
    if (sections.empty() || sections.back().first != name.substr(0, dot))
      sections.emplace_back(name.substr(0, dot), "");
    std::string& line = sections.back().second;
    line +=
        fmt::format("{}{}={}", line.empty() ? "" : "  ", name.substr(dot + 1), shell_quoted(value));
  }
  if (sections.empty()) return "";
  Table table({{"", Table::Align::kLeft}, {"", Table::Align::kLeft}});
  for (const auto& [section, line] : sections)
    table.add({style.dim(fmt::format("[{}]", section)), line});
  return fmt::format("\n  {}\n{}", style.bold("settings other than the defaults"), table.text(4));
}

std::string verify_text(const Inspection& inspection, const Style& style) {
  if (inspection.problems.empty()) {
    if (!inspection.verified) return "";
    std::int64_t blocks = 0, bytes = 0;
    for (const auto& tensor : inspection.reader.tensors()) {
      blocks += static_cast<std::int64_t>(tensor.blocks.size());
      bytes += bytes_of(tensor);
    }
    return fmt::format("\n  {} {} blocks, {}: every hash matches\n", style.good("verified"),
                       grouped(blocks), io::format_bytes(bytes));
  }
  Table table({{"shard", Table::Align::kLeft},
               {"tensor", Table::Align::kLeft},
               {"problem", Table::Align::kLeft}});
  // Tensors lost with their shard: a line per shard is enough.
  std::map<std::string, std::int64_t> gone;
  std::size_t shown = 0, distinct = 0;
  for (const auto& problem : inspection.problems) {
    if (!problem.tensor.empty() && problem.what.ends_with("are gone")) {
      ++gone[problem.shard];
    } else if (++distinct; shown < kProblemsShown) {
      ++shown;
      table.add({problem.shard, problem.tensor, problem.what});
    }
  }
  for (const auto& [shard, tensors] : gone)
    table.add({shard, counted(tensors, "tensor"), "blocks are gone with the shard"});
  const auto count = static_cast<std::int64_t>(inspection.problems.size());
  std::string text =
      fmt::format("\n  {}: {}\n{}", style.bad("DAMAGED"), counted(count, "problem"), table.text(2));
  if (distinct > shown)
    text += fmt::format("  ... and {} more (--json lists all)\n", distinct - shown);
  return text +
         "  use another checkpoint of the same run, or restore the named shards from a copy\n";
}

nlohmann::json json_of(const Inspection& inspection) {
  const io::CheckpointFacts& facts = inspection.reader.facts();
  nlohmann::json out = {
      {"kind", "checkpoint"},
      {"path", inspection.path},
      {"step", facts.step},
      {"tokens_seen", facts.tokens_seen},
      {"parameters", elements_of(inspection.reader.tensors(), "model/")},
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
  out["settings"] = nlohmann::json::object();
  for (const auto& [name, value] : settings_of(facts)) out["settings"][name] = value;
  const auto files = inspection.reader.shard_files();
  const auto sizes = inspection.reader.shard_bytes();
  out["shards"] = nlohmann::json::array();
  for (std::size_t i = 0; i < files.size(); ++i)
    out["shards"].push_back({{"file", files[i]}, {"bytes", sizes[i]}});
  out["tensors"] = nlohmann::json::array();
  for (const TensorEntry* tensor : inspection.listed)
    out["tensors"].push_back(tensor_json(*tensor, inspection.statistics));
  if (!inspection.first_values.empty()) out["tensors"][0]["first_values"] = inspection.first_values;
  out["verified"] = inspection.verified;
  out["problems"] = nlohmann::json::array();
  for (const auto& problem : inspection.problems)
    out["problems"].push_back(
        {{"shard", problem.shard}, {"tensor", problem.tensor}, {"what", problem.what}});
  return out;
}

void verify(Inspection& inspection) {
  Progress progress;
  inspection.problems = inspection.reader.verify([&](std::int64_t done, std::int64_t total) {
    progress.update("verifying", "B", done, total);
  });
  inspection.verified = true;
}

/// Statistics of what is listed; what cannot be read becomes a problem, unless it is one already.
void read_values(Inspection& inspection) {
  std::vector<io::VerifyProblem> found;
  inspection.statistics = gather_statistics(inspection.reader, inspection.listed, found);
  std::set<std::string> known;
  for (const auto& problem : inspection.problems) known.insert(problem.tensor);
  for (auto& problem : found)
    if (!known.contains(problem.tensor)) inspection.problems.push_back(std::move(problem));
  if (inspection.listed.size() == 1 && found.empty())
    inspection.first_values = first_values(inspection.reader, *inspection.listed[0]);
}

}  // namespace

CheckpointReport report_checkpoint(const std::string& path, const InspectOptions& options) {
  Inspection inspection(path);
  inspection.listed = select(inspection, options.tensor);
  if (options.verify) {
    verify(inspection);
  } else {
    look_at_shards(inspection);
  }
  if (options.stats || !options.tensor.empty()) read_values(inspection);
  CheckpointReport report;
  const Style& style = options.style;
  report.text = fmt::format("checkpoint {}\n\n{}", style.bold(path), facts_text(inspection, style));
  if (options.tensor.empty()) report.text += settings_text(inspection.reader.facts(), style);
  report.text += '\n';
  report.text += tensors_text(inspection.listed, inspection.statistics,
                              options.unfold || !options.tensor.empty(), style);
  if (!inspection.first_values.empty()) {
    report.text += fmt::format("\n  first values of {}:", inspection.listed[0]->name);
    for (const auto& value : inspection.first_values) report.text += " " + value;
    report.text += '\n';
  }
  report.text += verify_text(inspection, style);
  report.json = json_of(inspection);
  if (!inspection.problems.empty()) report.status = ExitStatus::kDamaged;
  return report;
}

ExitStatus inspect_checkpoint(const std::string& path, const InspectOptions& options) {
  if (options.tensor.find('[') == std::string::npos) {
    const CheckpointReport report = report_checkpoint(path, options);
    fmt::print("{}", options.json ? fmt::format("{}\n", report.json.dump(2)) : report.text);
    return report.status;
  }
  const TensorRequest request = parse_request(options.tensor);
  if (options.verify || options.stats)
    fail_usage("--tensor '{}' prints values alone: leave --verify and --stats out", options.tensor);
  Inspection inspection(path);
  const TensorEntry& tensor = select_one(inspection, request.name);
  const TensorSlice slice = parse_slice(*request.slice, tensor.name, tensor.global_shape);
  if (options.json) {
    print_values_json(inspection.reader, path, tensor, slice);
  } else {
    print_values(inspection.reader, tensor, slice,
                 ::isatty(STDOUT_FILENO) == 1 ? terminal_width() : 0);
  }
  return ExitStatus::kDone;
}

ExitStatus diff_checkpoints(const std::string& first, const std::string& second,
                            const InspectOptions& options) {
  if (options.verify) {
    for (const std::string& path : {first, second}) {
      Inspection inspection(path);
      verify(inspection);
      if (inspection.problems.empty()) continue;
      const auto& problem = inspection.problems[0];
      fail_damaged("{}: {}{}{}: {} ({} in all: `longspan inspect {} --verify` lists them)", path,
                   problem.shard, problem.tensor.empty() ? "" : ", ", problem.tensor, problem.what,
                   counted(static_cast<std::int64_t>(inspection.problems.size()), "problem"), path);
    }
  }
  const CheckpointDiff diff = compare_checkpoints(first, second, options.verify);
  fmt::print("{}", options.json ? diff_json(diff).dump(2) + "\n"
                                : diff_text(diff, options.unfold, options.style));
  return diff.equal() ? ExitStatus::kDone : ExitStatus::kFailed;
}

}  // namespace longspan::launcher
