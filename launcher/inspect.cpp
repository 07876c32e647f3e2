/// `longspan inspect PATH`: finds out what PATH is and shows it.
#include <cstdio>

#include "io/checkpoint.hpp"
#include "io/checkpoint_index.hpp"
#include "io/file.hpp"
#include "io/hdf5.hpp"
#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/inspect_checkpoint.hpp"
#include "launcher/inspect_dataset.hpp"
#include "launcher/progress.hpp"
#include "launcher/table.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

/// The `format` attribute of our own files; empty for anything else.
std::string format_of(const std::string& path) {
  try {
    const io::hdf5::File file = io::hdf5::File::open(path);
    return file.has_attribute("/", "format") ? file.text_attribute("/", "format") : "";
  } catch (const Error&) {
    return "";
  }
}

struct ListedCheckpoint {
  io::StoredCheckpoint stored;
  std::string problem;  ///< empty = complete
  io::CheckpointFacts facts;
  std::int64_t bytes = 0;
};

std::vector<ListedCheckpoint> list(const std::string& directory) {
  std::vector<ListedCheckpoint> listed;
  for (const auto& stored : io::list_checkpoints(directory)) {
    ListedCheckpoint entry{stored, "", {}, 0};
    try {
      const auto index = io::read_index(stored.path);
      entry.problem = io::why_incomplete(stored.path, index);
      entry.facts = index.facts;
      for (const auto bytes : index.shard_bytes) entry.bytes += bytes;
    } catch (const Error& error) {
      entry.problem = error.what();
    }
    listed.push_back(std::move(entry));
  }
  return listed;
}

/// The checkpoints of a run, then the newest complete one in full.
ExitStatus inspect_run(const std::string& path, const std::string& directory,
                       const InspectOptions& options) {
  const auto listed = list(directory);
  const std::string latest = io::base_name(io::symlink_target(directory + "/latest"));
  std::string newest;
  Table table({{"step"},
               {"tokens"},
               {"written", Table::Align::kLeft},
               {"mesh", Table::Align::kLeft},
               {"loss"},
               {"size"},
               {"", Table::Align::kLeft}});
  nlohmann::json entries = nlohmann::json::array();
  bool damaged = false;
  for (const auto& [stored, problem, facts, bytes] : listed) {
    const bool is_latest = io::base_name(stored.path) == latest;
    entries.push_back({{"path", stored.path},
                       {"step", stored.step},
                       {"complete", problem.empty()},
                       {"latest", is_latest}});
    if (!problem.empty()) {
      damaged = true;
      table.add({grouped(stored.step), "", "", "", "", "", "DAMAGED: " + problem});
      entries.back()["problem"] = problem;
      continue;
    }
    if (newest.empty() || is_latest || io::base_name(newest) != latest) newest = stored.path;
    entries.back()["bytes"] = bytes;
    table.add({grouped(stored.step), grouped(facts.tokens_seen), utc_text(facts.created_unix),
               fmt::format("{} x {} x {}", facts.data, facts.context, facts.tensor),
               facts.loss_history.empty() ? "" : fmt::format("{:.4f}", facts.loss_history.back()),
               io::format_bytes(bytes), is_latest ? "latest" : ""});
  }
  CheckpointReport report;
  if (!newest.empty()) report = report_checkpoint(newest, options);
  if (options.json) {
    nlohmann::json out = {
        {"kind", "run"}, {"path", path}, {"checkpoints", entries}, {"newest", report.json}};
    fmt::print("{}\n", out.dump(2));
  } else {
    fmt::print("run {}\n\n{}\n{}", path, listed.empty() ? "  no checkpoints yet\n" : table.text(2),
               report.text);
  }
  return damaged ? ExitStatus::kDamaged : report.status;
}

/// The folder of the checkpoint that `path` names: itself, a file in it, or a run of which it is
/// the newest. Empty if it names none.
std::string checkpoint_at(const std::string& path) {
  if (!io::path_exists(path)) fail_usage("{}: no such file or folder", path);
  if (!io::is_directory(path)) {
    const std::string format = format_of(path);
    const bool part = format == io::kIndexFormat || format == io::kShardFormat ||
                      io::base_name(path) == "index.h5";
    return part ? io::parent_path(path) : "";
  }
  if (io::path_exists(path + "/index.h5")) return path;
  for (const std::string& directory : {path + "/checkpoints", path})
    if (const std::string newest = io::newest_checkpoint(directory); !newest.empty()) return newest;
  // One that says what is missing.
  return io::base_name(path).starts_with("step-") ? path : "";
}

std::string require_checkpoint(const std::string& path, const char* what) {
  const std::string checkpoint = checkpoint_at(path);
  if (checkpoint.empty())
    fail_usage("{}: {} is for checkpoints: this is none, nor a run with a complete one", path,
               what);
  return checkpoint;
}

ExitStatus inspect_path(const std::string& path, const InspectOptions& options) {
  if (!io::path_exists(path)) fail_usage("{}: no such file or folder", path);
  if (options.tensor.find('[') != std::string::npos)
    return inspect_checkpoint(require_checkpoint(path, "--tensor"), options);
  if (io::is_directory(path)) {
    if (io::path_exists(path + "/index.h5")) return inspect_checkpoint(path, options);
    for (const std::string& directory : {path + "/checkpoints", path})
      if (io::is_directory(directory) &&
          (directory != path || !io::list_checkpoints(directory).empty()))
        return inspect_run(path, directory, options);
    if (io::base_name(path).starts_with("step-"))
      return inspect_checkpoint(path, options);  // says what is missing
    fail_usage("{}: neither a checkpoint (no index.h5) nor a run directory (no checkpoints/)",
               path);
  }
  const std::string checkpoint = checkpoint_at(path);
  if (!checkpoint.empty()) return inspect_checkpoint(checkpoint, options);
  if (!options.tensor.empty() || options.stats || options.unfold)
    fail_usage("{}: --{} is for checkpoints, this is a file of another kind", path,
               !options.tensor.empty() ? "tensor"
               : options.stats         ? "stats"
                                       : "unfold");
  return inspect_dataset(path, options.verify, options.json);
}

}  // namespace

ExitStatus inspect_command(const std::vector<std::string>& arguments) {
  const Arguments args(
      arguments, "inspect",
      "looks into PATH: a dataset, a checkpoint or a run directory. Of a checkpoint only metadata "
      "are read, unless a flag asks for more",
      {{"stats", "", "read every value: mean, standard deviation, norm, range, NaN and Inf"},
       {"verify", "", "hash every block; exit status 3 if anything is damaged"},
       {"tensor", "NAME[SLICE]",
        "values of one tensor, sliced as in NumPy with steps of 1; without [SLICE] the statistics "
        "of NAME, or of all with NAME in their names"},
       {"diff", "OTHER",
        "compare with another checkpoint, of whatever mesh; exit status 0 if tensors and place in "
        "the training are equal, 1 if not. Equal hashes are trusted unless --verify is given"},
       {"unfold", "", "a line for every layer, also where layers are alike"},
       {"json", "", "one JSON object instead of tables"}},
      "longspan inspect runs/code --tensor 'embedding.token.weight[0:4, -3:]'");
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  if (args.positional().size() != 1)
    fail_usage("inspect needs one PATH, {} were given: longspan inspect runs/code",
               args.positional().size());
  const InspectOptions options{.verify = args.has("verify"),
                               .stats = args.has("stats"),
                               .unfold = args.has("unfold"),
                               .json = args.has("json"),
                               .tensor = args.text("tensor"),
                               .style = Style::of(stdout)};
  const std::string& path = args.positional()[0];
  if (!args.has("diff")) return inspect_path(path, options);
  if (options.stats || !options.tensor.empty())
    fail_usage("inspect: --diff goes with --verify, --unfold and --json only");
  return diff_checkpoints(require_checkpoint(path, "--diff"),
                          require_checkpoint(args.text("diff"), "--diff"), options);
}

}  // namespace longspan::launcher
