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
    ListedCheckpoint entry{stored, io::why_incomplete(stored.path), {}, 0};
    if (entry.problem.empty()) {
      const auto index = io::read_index(stored.path);
      entry.facts = index.facts;
      for (const auto bytes : index.shard_bytes) entry.bytes += bytes;
    }
    listed.push_back(std::move(entry));
  }
  return listed;
}

/// The checkpoints of a run, then the newest complete one in full.
ExitStatus inspect_run(const std::string& path, const std::string& directory, bool verify,
                       bool json, const std::string& tensor) {
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
  if (!newest.empty()) report = report_checkpoint(newest, verify, tensor);
  if (json) {
    nlohmann::json out = {
        {"kind", "run"}, {"path", path}, {"checkpoints", entries}, {"newest", report.json}};
    fmt::print("{}\n", out.dump(2));
  } else {
    fmt::print("run {}\n\n{}\n{}", path, listed.empty() ? "  no checkpoints yet\n" : table.text(2),
               report.text);
  }
  return damaged ? ExitStatus::kDamaged : report.status;
}

ExitStatus inspect_path(const std::string& path, bool verify, bool json,
                        const std::string& tensor) {
  if (!io::path_exists(path)) fail_usage("{}: no such file or folder", path);
  if (io::is_directory(path)) {
    if (io::path_exists(path + "/index.h5")) return inspect_checkpoint(path, verify, json, tensor);
    for (const std::string& directory : {path + "/checkpoints", path})
      if (io::is_directory(directory) &&
          (directory != path || !io::list_checkpoints(directory).empty()))
        return inspect_run(path, directory, verify, json, tensor);
    if (io::base_name(path).starts_with("step-"))
      return inspect_checkpoint(path, verify, json, tensor);  // says what is missing
    fail_usage("{}: neither a checkpoint (no index.h5) nor a run directory (no checkpoints/)",
               path);
  }
  const std::string format = format_of(path);
  if (format == io::kIndexFormat || format == io::kShardFormat || io::base_name(path) == "index.h5")
    return inspect_checkpoint(io::parent_path(path), verify, json, tensor);
  if (!tensor.empty())
    fail_usage("{}: --tensor is for checkpoints, this is a file of another kind", path);
  return inspect_dataset(path, verify, json);
}

}  // namespace

ExitStatus inspect_command(const std::vector<std::string>& arguments) {
  const Arguments args(
      arguments, "inspect", "looks into PATH: a dataset, a checkpoint or a run directory",
      {{"verify", "", "hash every block; exit status 3 if anything is damaged"},
       {"tensor", "NAME", "show this tensor of a checkpoint, or all with NAME in their names"},
       {"json", "", "one JSON object instead of tables"}},
      "longspan inspect runs/code/checkpoints/latest --verify");
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  if (args.positional().size() != 1)
    fail_usage("inspect needs one PATH, {} were given: longspan inspect runs/code",
               args.positional().size());
  return inspect_path(args.positional()[0], args.has("verify"), args.has("json"),
                      args.text("tensor"));
}

}  // namespace longspan::launcher
