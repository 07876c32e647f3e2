/// `longspan scale`: how a configuration scales over ranks, meshes, schemes and lengths.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "io/token_dataset.hpp"
#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/launch.hpp"
#include "launcher/options.hpp"
#include "launcher/plan.hpp"
#include "launcher/run_layout.hpp"
#include "launcher/study_page.hpp"
#include "launcher/study_run.hpp"
#include "launcher/study_table.hpp"
#include "launcher/table.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

namespace fs = std::filesystem;

/// "1,2,4"; throws Error (usage) for an empty part.
std::vector<std::string> parts_of_list(const Arguments& args, const std::string& flag) {
  std::vector<std::string> parts;
  const std::string text = args.text(flag);
  std::istringstream list(text);
  for (std::string part; std::getline(list, part, ',');) parts.push_back(part);
  if (parts.empty() || text.back() == ',' ||
      std::find(parts.begin(), parts.end(), "") != parts.end())
    fail_usage("scale: --{} '{}': it must be a list such as 1,2,4", flag, text);
  return parts;
}

template <class T>
void keep_different(std::vector<T>& values) {
  std::vector<T> kept;
  for (const T& value : values)
    if (std::find(kept.begin(), kept.end(), value) == kept.end()) kept.push_back(value);
  values = kept;
}

std::int64_t whole(const Arguments& args, const std::string& flag, std::int64_t least,
                   std::int64_t most) {
  const std::int64_t value = args.integer(flag);
  if (value < least || value > most)
    fail_usage("scale: --{} {}: it must be between {} and {}", flag, value, least, most);
  return value;
}

std::vector<int> ranks_of(const Arguments& args, const StudySpec& spec) {
  std::vector<int> ranks;
  constexpr std::int64_t kMost = 100000;
  if (args.has("ranks")) {
    for (const std::string& text : parts_of_list(args, "ranks")) {
      const bool digits = text.find_first_not_of("0123456789") == std::string::npos;
      const std::int64_t n = digits && text.size() < 7 ? std::stoll(text) : 0;
      if (n < 1 || n > kMost)
        fail_usage("scale: --ranks {}: '{}' is no number between 1 and {}", args.text("ranks"),
                   text, kMost);
      ranks.push_back(static_cast<int>(n));
    }
  } else {
    bool open = false;
    for (const MeshConfig& m : spec.meshes) {
      open = open || m.data * m.context * m.tensor == 0;
      if (m.data * m.context * m.tensor > 0) ranks.push_back(m.data * m.context * m.tensor);
    }
    if (open && spec.submit)
      fail_usage("scale: how many ranks? --ranks 1,2,4,...: a mesh with an N fits any number");
    if (open)
      for (int n = 1; n <= usable_cores().count; n *= 2) ranks.push_back(n);
  }
  std::sort(ranks.begin(), ranks.end());
  keep_different(ranks);
  return ranks;
}

/// The configuration of every run: short, without saves and validation, and with a profile.
RunConfig study_config(const Arguments& args, std::int64_t steps) {
  RunConfig config = parse_config(args.text("config"), args.settings());
  if (config.data.path.empty())
    fail_usage("scale: data.path is not set: every run needs a dataset (longspan prepare)");
  config.data.path = fs::absolute(config.data.path).lexically_normal().string();
  if (config.model.vocabulary == 0) {
    // Only that: the rest depends on the point.
    RunConfig resolved = config;
    resolve(resolved, io::TokenDataset::open(config.data.path).facts().vocabulary);
    config.model.vocabulary = resolved.model.vocabulary;
  }
  const RunConfig defaults;
  config.run.name = "study";
  config.run.directory.clear();
  config.train.steps = steps;
  config.train.stop_after = 0, config.train.validate_every = 0, config.train.patience = 0;
  config.train.time_limit = defaults.train.time_limit;
  config.checkpoint.every = 0;
  config.checkpoint.resume = defaults.checkpoint.resume;
  config.log.profile = true;
  config.slurm.nodes = 0;
  config.slurm.array.clear();
  config.slurm.continuation = slurm::Continue::kNone;
  return config;
}

StudySpec spec_of(const Arguments& args) {
  StudySpec spec;
  spec.warmup = whole(args, "warmup", 0, 1000000);
  spec.steps = whole(args, "steps", 1, 1000000);
  spec.repeats = whole(args, "repeat", 1, 1000);
  if (spec.steps <= spec.warmup)
    fail_usage("scale: --steps {} with --warmup {}: no step would count", spec.steps, spec.warmup);
  spec.submit = args.has("submit");
  const std::string mode = args.text("mode"), grow = args.text("grow");
  if (mode != "strong" && mode != "weak")
    fail_usage("scale: --mode {}: it must be strong or weak", mode);
  if (grow != "batch" && grow != "length")
    fail_usage("scale: --grow {}: it must be batch or length", grow);
  if (mode == "strong" && args.has("grow"))
    fail_usage("scale: --grow is for --mode weak: strong scaling is the same work on all points");
  spec.scaling = mode == "strong"  ? Scaling::kStrong
                 : grow == "batch" ? Scaling::kWeakBatch
                                   : Scaling::kWeakLength;
  spec.config = study_config(args, spec.steps);
  if (spec.submit) spec.ranks_per_node = spec.config.slurm.ranks_per_node;
  spec.config.slurm.ranks_per_node = 0;

  if (args.has("mesh"))
    for (const std::string& text : parts_of_list(args, "mesh"))
      spec.meshes.push_back(parse_mesh(text));
  else
    spec.meshes.push_back(parse_mesh(mesh_text(spec.config.mesh)));
  spec.config.mesh = {};
  if (args.has("scheme"))
    for (const std::string& text : parts_of_list(args, "scheme"))
      spec.schemes.push_back(parse_config("", {"--attention.scheme", text}).attention.scheme);
  else
    spec.schemes.push_back(spec.config.attention.scheme);
  if (args.has("length"))
    for (const std::string& text : parts_of_list(args, "length"))
      spec.lengths.push_back(
          parse_config("", {"--data.sequence-length", text}).data.sequence_length);
  else
    spec.lengths.push_back(spec.config.data.sequence_length);
  keep_different(spec.schemes);
  keep_different(spec.lengths);
  spec.ranks = ranks_of(args, spec);
  // A rank is the same on every point: one that had all cores to itself on the smallest one would
  // hide what more ranks are good for.
  if (!spec.submit && spec.config.run.threads == 0)
    spec.config.run.threads = std::max(1, usable_cores().count / spec.ranks.back());
  return spec;
}

/// The command line says what the study is; without that, the folder does.
bool says_what(const Arguments& args) {
  for (const char* flag : {"config", "ranks", "mesh", "scheme", "length", "mode", "grow", "repeat",
                           "steps", "warmup", "submit"})
    if (args.has(flag)) return true;
  return !args.settings().empty();
}

std::string dry_text(const StudySpec& spec, const Study& study) {
  using Align = Table::Align;
  Table table({{"point", Align::kLeft},
               {"ranks"},
               {"nodes"},
               {"mesh", Align::kLeft},
               {"scheme", Align::kLeft},
               {"tokens"},
               {"batch"},
               {"MiB a rank"}});
  for (const StudyPoint& p : study.points) {
    const RunConfig config = config_of(spec, p);
    const Placement placement{p.ranks(), p.ranks() / p.nodes};
    const auto scheme = scheme_of(config, p.mesh, placement.context_per_node(p.mesh));
    RunConfig fixed = config;
    if (fixed.memory.keep == model::Keep::kAuto) fixed.memory.keep = model::Keep::kAll;
    const auto memory =
        model::memory_estimate(fixed.model, fixed.memory, rank_share_of(fixed, p.mesh, scheme));
    table.add({p.name, std::to_string(p.ranks()), std::to_string(p.nodes), mesh_text(p.mesh),
               scheme_text(p), std::to_string(p.length), std::to_string(p.batch),
               fmt::format("{:.1f}", static_cast<double>(memory.total()) / 1048576)});
  }
  return fmt::format("{} scaling, {} points, {} run{} of {} steps each\n{}",
                     scaling_text(spec.scaling), study.points.size(), spec.repeats,
                     spec.repeats == 1 ? "" : "s", spec.steps, table.text());
}

void warn_of_too_many(const Study& study) {
  const int cores = usable_cores().count;
  int most = 0;
  for (const StudyPoint& point : study.points) most = std::max(most, point.ranks());
  if (most > cores)
    log::warn("{} ranks on {} cores: they share them, which says nothing of how more cores scale",
              most, cores);
}

ExitStatus status_of_study(const StudyState& state) {
  bool failed = false, unfinished = state.interrupted;
  for (const auto& runs : state.results)
    for (const auto& run : runs) {
      failed = failed || (run && run->failed());
      unfinished = unfinished || !run;
    }
  return unfinished ? ExitStatus::kRequeue : failed ? ExitStatus::kFailed : ExitStatus::kDone;
}

void forget_failures(const StudyFolder& folder) {
  for (std::size_t p = 0; p < folder.study().points.size(); ++p)
    for (std::int64_t r = 0; r < folder.spec().repeats; ++r)
      if (const auto result = folder.result(p, r); result && result->failed()) {
        folder.forget(p, r);
        io::remove_path(folder.run_directory(p, r));
      }
}

}  // namespace

ExitStatus scale_command(const std::vector<std::string>& arguments) {
  const Arguments args(
      arguments, "scale",
      "runs a configuration on several numbers of ranks, meshes, attention schemes and lengths, a "
      "few steps each, and says how it scales: a table, results.h5, results.csv and report.html "
      "in the folder of the study. Points run one after the other, every rank on all of them with "
      "the same number of threads (run.threads; else cores / most ranks), or as Slurm jobs. The "
      "same "
      "command, or --output alone, goes on where a study was ended or killed; a point that fails "
      "is kept and marked. Exit status 1: points failed; 75: not complete yet",
      {{"config", "FILE", "settings, an INI file; --section.key VALUE overrides it"},
       {"output", "DIR", "folder of the study"},
       {"ranks", "LIST", "such as 1,2,4; without it those of the meshes, else 1, 2, 4, ... cores"},
       {"mesh", "LIST",
        "data x context x tensor: Nx1x1,1xNx1 (N: the ranks that are left) or 2x1x1,1x2x1; without "
        "it the configuration's"},
       {"scheme", "LIST", "such as ring,ulysses; without it the configuration's"},
       {"length", "LIST", "tokens of a sequence, such as 4k,8k; without it the configuration's"},
       {"mode", "MODE",
        "strong: the same work on all points; weak: the same on each rank, so that "
        "train.global-batch and --length are of one rank",
        "strong"},
       {"grow", "WHAT", "what grows with the ranks in weak scaling: batch or length", "batch"},
       {"repeat", "N", "runs of each point", "1"},
       {"steps", "N", "of a run", "10"},
       {"warmup", "N", "of these, which do not count", "2"},
       {"submit", "", "as Slurm jobs, by the settings of [slurm]"},
       {"dry-run", "", "only list the points, and what is left out and why"},
       {"retry", "", "run again what failed"},
       {"json", "", "one JSON object instead of the table"}},
      "longspan scale --config configs/tiny.ini --ranks 1,2 --mesh Nx1x1,1xNx1 --repeat 3 --output "
      "studies/tiny",
      true);
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  std::optional<StudySpec> wanted;
  if (says_what(args)) wanted = spec_of(args);
  if (args.has("dry-run") && wanted) {
    const Study study = plan_study(*wanted);
    log::line(dry_text(*wanted, study) + left_out_text(study));
    return ExitStatus::kDone;
  }
  if (args.text("output").empty())
    fail_usage("scale: --output is missing: the folder of the study");
  const std::string path = fs::absolute(args.text("output")).lexically_normal().string();
  const StudyFolder folder(
      path.size() > 1 && path.back() == '/' ? path.substr(0, path.size() - 1) : path, wanted);
  if (args.has("dry-run")) {
    log::line(dry_text(folder.spec(), folder.study()) + left_out_text(folder.study()));
    return ExitStatus::kDone;
  }
  const Say say = args.has("json")
                      ? [](const std::string& text) { fmt::print(stderr, "{}\n", text); }
                      : [](const std::string& text) { log::line(text); };
  for (const LeftOut& left : folder.study().left_out)
    say(fmt::format("left out: {}: {}", left.name, left.why));
  if (!folder.spec().submit) warn_of_too_many(folder.study());
  if (args.has("retry")) forget_failures(folder);

  const StudyState state =
      folder.spec().submit ? submit_study(folder, say) : run_study(folder, say);
  const std::vector<PointResult> rows = state.rows(folder);
  folder.write_tables(rows);
  write_page(folder.path() + "/report.html",
             study_page(io::base_name(folder.path()), folder.spec(), folder.study(), rows));
  log::line(args.has("json") ? study_json(folder.spec(), folder.study(), rows)
                             : study_text(folder.spec(), folder.study(), rows));
  const ExitStatus status = status_of_study(state);
  if (!args.has("json"))
    log::info("{}{}/report.html, results.csv, results.h5",
              status == ExitStatus::kRequeue
                  ? fmt::format("not complete: longspan scale --output {} goes on; ", folder.path())
                  : "",
              folder.path());
  return status;
}

}  // namespace longspan::launcher
