#include "slurm/sbatch.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <string_view>
#include <utility>

#include "slurm/remaining_time.hpp"

namespace longspan::slurm {
namespace {

struct Remedy {
  std::string_view sbatch_says, way_out;
};
/// Texts of Slurm 22.05; parts of them are older and newer than that.
constexpr std::array<Remedy, 13> kRemedies = {{
    {"invalid partition", "set slurm.partition to one that `sinfo -s` lists"},
    {"Requested node configuration is not available",
     "no node has that much: lower slurm.ranks-per-node, slurm.cpus-per-rank, slurm.gpus-per-rank, "
     "slurm.memory or slurm.nodes, or choose another slurm.partition (`sinfo -N -l` lists nodes)"},
    {"More processors requested", "lower slurm.ranks-per-node or slurm.cpus-per-rank"},
    {"Node count specification invalid",
     "lower slurm.nodes, or choose another slurm.partition (`sinfo -s` lists them)"},
    {"Invalid feature specification",
     "set slurm.constraint to features that `sinfo -o '%N %f'` lists"},
    {"Requested time limit is invalid", "slurm.time is above the partition's limit (`sinfo -s`)"},
    {"Invalid --time specification", "write slurm.time as 1-12:00:00, 12:00:00 or minutes"},
    {"Invalid account", "set slurm.account to one of yours (`sacctmgr show associations`)"},
    {"Invalid qos", "set slurm.qos to one of yours (`sacctmgr show qos`)"},
    {"Requested reservation is invalid",
     "set slurm.reservation to one that `scontrol show reservation` lists"},
    {"dependency", "set slurm.dependency to a form such as afterok:123"},
    {"gres", "set slurm.gpus-per-rank to 0, or choose a slurm.partition with GPUs"},
    {"Unable to contact slurm controller", "Slurm does not answer: try again later (`sinfo`)"},
}};

bool contains(std::string_view text, std::string_view part) {
  return std::search(text.begin(), text.end(), part.begin(), part.end(), [](char a, char b) {
           return std::tolower(static_cast<unsigned char>(a)) ==
                  std::tolower(static_cast<unsigned char>(b));
         }) != text.end();
}

/// Lines become one, without the repeated "sbatch: error: ".
std::string one_line(std::string_view text) {
  std::string line;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view part = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    for (const std::string_view prefix : {"sbatch: ", "scontrol: ", "error: ", "fatal: "})
      if (part.rfind(prefix, 0) == 0) part.remove_prefix(prefix.size());
    if (part.empty()) continue;
    if (!line.empty()) line += "; ";
    line += part;
  }
  return line;
}

std::string missing(const std::string& command) {
  return fmt::format(
      "there is no {} here: submit from a login node of a Slurm cluster, or use longspan launch; "
      "--dry-run shows the script anywhere",
      command);
}

/// Why a command of Slurm other than sbatch failed; empty if it did not.
std::string failure_of(const std::string& command, const ProcessOutcome& outcome) {
  if (outcome.fine()) return "";
  if (!outcome.found) return missing(command);
  if (outcome.timed_out) return fmt::format("{} did not answer in time", command);
  const std::string said = one_line(outcome.err.empty() ? outcome.out : outcome.err);
  return fmt::format("{}: {}", command,
                     said.empty() ? fmt::format("status {}", outcome.status) : said);
}

}  // namespace

std::string sbatch_error(const ProcessOutcome& outcome) {
  if (!outcome.found) return missing("sbatch");
  if (outcome.timed_out)
    return "sbatch did not answer in time: see whether the job is there (squeue --me) before you "
           "submit again";
  const std::string said = one_line(outcome.err);
  for (const Remedy& remedy : kRemedies)
    if (contains(said, remedy.sbatch_says))
      return fmt::format("sbatch: {}: {}", said, remedy.way_out);
  return fmt::format("sbatch: {}: --dry-run shows what it was given",
                     said.empty() ? fmt::format("status {}", outcome.status) : said);
}

Submission submit_script(const std::string& script, const std::vector<std::string>& options) {
  std::vector<std::string> words = {"sbatch", "--parsable"};
  words.insert(words.end(), options.begin(), options.end());
  const ProcessOutcome outcome =
      run_process(words, script, std::chrono::minutes(2), Environment::kWithoutJob);
  if (!outcome.fine()) return {"", sbatch_error(outcome)};
  // "ID" or "ID;CLUSTER"
  const std::string id = outcome.out.substr(0, outcome.out.find_first_of(";\n"));
  if (id.empty() ||
      !std::all_of(id.begin(), id.end(), [](unsigned char c) { return std::isdigit(c) != 0; }))
    return {"", fmt::format("sbatch said '{}' instead of a job id", one_line(outcome.out))};
  return {id, ""};
}

std::string requeue_job(const std::string& job) {
  const std::string failure = failure_of("scontrol", run_process({"scontrol", "requeue", job}));
  // A job that was preempted is back in the queue while its processes are still ending.
  return contains(failure, "Job is pending execution") ? "" : failure;
}

Submission submit_successor(const std::string& job, const std::string& option) {
  const ProcessOutcome script = run_process({"scontrol", "write", "batch_script", job, "-"});
  if (!script.fine()) return {"", failure_of("scontrol", script)};
  std::vector<std::string> options = {"--dependency=afterany:" + job};
  if (!option.empty()) options.push_back(option);
  return submit_script(script.out, options);
}

bool JobFacts::cancelled() const {
  return state == "CANCELLED" ||
         (state == "COMPLETING" && (!limit_seconds || run_seconds < *limit_seconds));
}

JobFacts job_facts(const std::string& job) {
  const ProcessOutcome outcome = run_process({"scontrol", "show", "job", job});
  if (!outcome.fine()) return {};
  // The name in the first line may hold anything but a line break: keys count in the lines below.
  const auto value = [&](std::string_view key) -> std::string {
    const std::size_t first = outcome.out.find("\n   JobState=");
    const std::size_t at = outcome.out.find(key, first);
    if (first == std::string::npos || at == std::string::npos) return "";
    const std::size_t begin = at + key.size();
    return outcome.out.substr(begin, outcome.out.find_first_of(" \n", begin) - begin);
  };
  return {value("\n   JobState="), parse_slurm_time(value("\n   RunTime=")).value_or(0),
          parse_slurm_time(value(" TimeLimit="))};
}

}  // namespace longspan::slurm
