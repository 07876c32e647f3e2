/// `longspan submit`: from a configuration to a job in Slurm's queue.
#include "launcher/submit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/checkpoint.hpp"
#include "io/file.hpp"
#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/options.hpp"
#include "launcher/run_history.hpp"
#include "parallel/log.hpp"
#include "parallel/mesh.hpp"
#include "slurm/remaining_time.hpp"
#include "slurm/sbatch.hpp"
#include "slurm/site.hpp"

namespace longspan::launcher {
namespace {

namespace fs = std::filesystem;

/// The whole lines among the last 64 KiB; none if there is no such file.
std::vector<std::string> last_lines(const std::string& path) {
  constexpr std::streamoff kBytes = 1 << 16;
  std::ifstream file(path, std::ios::binary);
  if (!file) return {};
  file.seekg(0, std::ios::end);
  const std::streamoff size = file.tellg();
  file.seekg(std::max<std::streamoff>(0, size - kBytes));
  std::vector<std::string> lines;
  std::string line;
  if (size > kBytes) std::getline(file, line);  // it may lack its beginning
  while (std::getline(file, line)) lines.push_back(line);
  return lines;
}

/// Seconds of "saved PATH in 1.25 s, 0.10 s of it in the way"; 0 if it is not that line.
double seconds_of_save(const std::string& line) {
  const std::size_t at =
      line.rfind(" in ", line.rfind(" s, ") == line.npos ? line.npos : line.rfind(" s, "));
  if (line.find("saved ") == line.npos || at == line.npos) return 0;
  std::istringstream text(line.substr(at + 4));
  double seconds = 0;
  std::string unit;
  return text >> seconds >> unit && unit.rfind('s', 0) == 0 ? seconds : 0;
}

/// What differs from the defaults and concerns the ranks or the end of a job.
std::vector<std::string> settings_of_job(const RunConfig& config) {
  const auto of_slurm = [](const std::string& name) { return name.rfind("slurm.", 0) == 0; };
  const std::vector<std::string> at_end = {"slurm.continue", "slurm.max-restarts",
                                           "slurm.signal-margin"};
  std::vector<std::string> settings;
  for (const OptionDescription& o : describe_options(config)) {
    if (o.value == o.default_value || o.name == "run.directory") continue;
    if (of_slurm(o.name) && std::find(at_end.begin(), at_end.end(), o.name) == at_end.end())
      continue;
    if (o.value.rfind("--", 0) == 0)
      fail_usage("{}={}: on the command lines of a job a value cannot begin with --: change it",
                 o.name, ini_value(o.value));
    settings.insert(settings.end(), {"--" + o.name, o.value});
  }
  return settings;
}

/// A second job of a run would only wait for the first one's lock, and then fail.
void refuse_second_job(const std::string& run_directory) {
  std::string job;
  for (const RunEvent& event : read_history(run_directory))
    if (!event.job.empty()) job = event.job;
  if (job.empty()) return;
  const std::string state = slurm::job_facts(job).state;
  for (const char* alive : {"PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING"})
    if (state == alive)
      fail("{} has job {} already ({}): wait for its end, or end it with: scancel {}",
           run_directory, job, state, job);
}

/// Says what Slurm would leave in its queue for ever; refuses what it cannot run. Slurm may be
/// silent: sbatch has the last word anyway.
void check_request(const slurm::BatchJob& job) {
  const auto site = slurm::ask_site(job.slurm);
  if (!site) return;
  const int cpus = job.slurm.cpus_per_rank > 0 ? job.slurm.cpus_per_rank : job.threads_per_rank;
  std::string refused;
  for (const slurm::RequestProblem& problem : slurm::request_problems(job.slurm, cpus, *site))
    if (problem.certain)
      refused += (refused.empty() ? "" : "\n") + problem.text;
    else
      log::warn("{}", problem.text);
  if (!refused.empty()) fail("{}", refused);
}

}  // namespace

MeasuredTimes measured_times(const std::string& run_directory) {
  MeasuredTimes times;
  for (const std::string& text : last_lines(run_directory + "/metrics.jsonl")) {
    const auto line = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!line.is_object() || !line.contains("step_seconds")) continue;
    if (const auto& seconds = line["step_seconds"]; seconds.is_number())
      times.step_seconds = std::max(times.step_seconds, seconds.get<double>());
  }
  for (const std::string& line : last_lines(run_directory + "/log.txt"))
    times.save_seconds = std::max(times.save_seconds, seconds_of_save(line));
  return times;
}

slurm::SlurmConfig resolve_nodes(const RunConfig& config) {
  slurm::SlurmConfig s = config.slurm;
  const MeshConfig& m = config.mesh;
  const bool whole = m.data > 0 && m.context > 0 && m.tensor > 0;
  const int ranks = whole ? m.data * m.context * m.tensor : 0;
  if (s.nodes == 0 && s.ranks_per_node == 0 && !whole)
    fail_usage(
        "submit: how many ranks? set slurm.nodes and slurm.ranks-per-node, or all of mesh.data, "
        "mesh.context and mesh.tensor");
  if (s.ranks_per_node == 0) {
    if (s.nodes == 0) s.nodes = 1;
    if (!whole)
      fail_usage(
          "submit: slurm.nodes={} alone does not say how many ranks: set "
          "slurm.ranks-per-node, or all of mesh.data, mesh.context and mesh.tensor",
          s.nodes);
    if (ranks % s.nodes != 0)
      fail_usage(
          "submit: {} has {} ranks, which slurm.nodes={} cannot share evenly: change one of "
          "them",
          to_string(MeshShape{m.data, m.context, m.tensor}), ranks, s.nodes);
    s.ranks_per_node = ranks / s.nodes;
  }
  if (s.nodes == 0) {
    s.nodes = whole ? std::max(1, ranks / s.ranks_per_node) : 1;
    if (whole && ranks % s.ranks_per_node != 0)
      fail_usage(
          "submit: {} has {} ranks, not a multiple of slurm.ranks-per-node={}: change one of "
          "them",
          to_string(MeshShape{m.data, m.context, m.tensor}), ranks, s.ranks_per_node);
  }
  // Says the equation and what would fit, as the ranks themselves would.
  try {
    resolve_mesh(m, s.nodes * s.ranks_per_node);
  } catch (const Error& e) {
    fail_usage("slurm.nodes={} * slurm.ranks-per-node={}: {}", s.nodes, s.ranks_per_node, e.what());
  }
  return s;
}

slurm::BatchJob batch_job(const RunConfig& config, const std::string& program,
                          const std::string& submitted_from) {
  slurm::BatchJob job;
  job.slurm = resolve_nodes(config);
  job.name = config.run.name;
  job.program = program;
  job.submitted_from = submitted_from;
  job.run_directory = (fs::path(submitted_from) / config.directory()).lexically_normal().string();
  if (job.run_directory.size() > 1 && job.run_directory.back() == '/') job.run_directory.pop_back();
  job.settings = settings_of_job(config);
  job.threads_per_rank = config.run.threads;
  const MeasuredTimes times = measured_times(job.run_directory);
  job.lead = slurm::signal_lead(times.step_seconds, times.save_seconds, config.slurm.signal_margin,
                                slurm::parse_slurm_time(config.slurm.time, true).value_or(0));
  return job;
}

std::int64_t newest_step(const std::string& run_directory) {
  const std::string path = io::newest_checkpoint(run_directory + "/checkpoints");
  const std::size_t digits = path.find_last_not_of("0123456789") + 1;
  return path.empty() || digits == path.size() ? 0 : std::stoll(path.substr(digits));
}

ExitStatus submit_command(const std::vector<std::string>& arguments) {
  const Arguments args(
      arguments, "submit",
      "writes a batch script from the settings of [slurm] and the mesh, submits it with sbatch, "
      "and "
      "says which job it is and where its log will be. The job saves before its time is up, and "
      "goes on by itself (slurm.continue) until the run is done; the file `stop` in the run "
      "directory ends that",
      {{"config", "FILE", "settings, an INI file; --section.key VALUE overrides it"},
       {"dry-run", "", "only print the script; asks no Slurm and writes nothing"},
       {"after", "STATUS",
        "for the script itself, inside the job: the ranks have ended with STATUS; starts the run "
        "again, or says why not"}},
      "longspan submit --config configs/tiny.ini --slurm.nodes 2 --slurm.ranks-per-node 2 "
      "--slurm.time 1:00:00 --dry-run",
      true);
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  const RunConfig config = parse_config(args.text("config"), args.settings());
  if (args.has("after")) return continue_run(config, static_cast<int>(args.integer("after")));

  const slurm::BatchJob job =
      batch_job(config, fs::read_symlink("/proc/self/exe").string(), fs::current_path().string());
  const std::string script = slurm::batch_script(job);
  if (args.has("dry-run")) {
    fmt::print("{}", script);
    return ExitStatus::kDone;
  }
  check_request(job);
  refuse_second_job(job.run_directory);
  io::make_directories(job.run_directory);  // sbatch does not make the folder of the log
  const slurm::Submission submission = slurm::submit_script(script);
  if (submission.job.empty()) fail("{}", submission.error);
  withdraw_stop(job.run_directory);
  const int ranks = job.slurm.nodes * job.slurm.ranks_per_node;
  const std::string log_file = slurm::log_path(job, submission.job);
  append_event(job.run_directory, {.event = "submitted",
                                   .job = submission.job,
                                   .step = newest_step(job.run_directory),
                                   .ranks = ranks,
                                   .where = log_file});
  log::info("submitted job {}: {} rank{} on {} node{}", submission.job, ranks,
            ranks == 1 ? "" : "s", job.slurm.nodes, job.slurm.nodes == 1 ? "" : "s");
  log::info("log: {}", log_file);
  return ExitStatus::kDone;
}

}  // namespace longspan::launcher
