#include "slurm/batch_script.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "slurm/quoting.hpp"

namespace longspan::slurm {
namespace {

/// Until the run has measured its own.
constexpr double kAssumedSeconds = 60;
/// What sbatch --signal takes at most.
constexpr std::int64_t kLongestLead = 65535;

/// sbatch unescapes a backslash in a file name and then takes the name as it is, %j included.
bool can_be_named(const std::string& path) {
  return std::none_of(path.begin(), path.end(),
                      [](unsigned char c) { return c == '\\' || c < 0x20 || c == 0x7f; });
}

/// '%' begins a pattern in the file names of sbatch.
std::string without_patterns(const std::string& path) {
  std::string text;
  for (const char c : path) text += c == '%' ? std::string("%%") : std::string(1, c);
  return text;
}

int cpus_per_rank(const BatchJob& job) {
  return job.slurm.cpus_per_rank > 0 ? job.slurm.cpus_per_rank : job.threads_per_rank;
}

std::string sbatch_lines(const BatchJob& job) {
  const SlurmConfig& s = job.slurm;
  std::string text;
  const auto add = [&](std::string_view option, std::string_view value) {
    if (!value.empty()) text += fmt::format("#SBATCH --{}={}\n", option, sbatch_quoted(value));
  };
  const auto count = [&](std::string_view option, int value) {
    if (value > 0) text += fmt::format("#SBATCH --{}={}\n", option, value);
  };
  add("job-name", job.name);
  count("nodes", s.nodes);
  count("ntasks-per-node", s.ranks_per_node);
  count("cpus-per-task", cpus_per_rank(job));
  // Not per task: a rank that sees only its own GPU cannot reach its neighbours' directly.
  count("gpus-per-node", s.gpus_per_rank * s.ranks_per_node);
  add("mem", s.memory);
  add("time", s.time);
  add("partition", s.partition);
  add("account", s.account);
  add("qos", s.qos);
  add("constraint", s.constraint);
  add("reservation", s.reservation);
  add("array", s.array);
  add("dependency", s.dependency);
  std::string_view rest = s.extra;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    if (end > 0) text += fmt::format("#SBATCH {}\n", rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  text += "# Appended to: otherwise a restart of the job empties it.\n";
  add("output", log_pattern(job));
  text += "#SBATCH --open-mode=append\n";
  text += s.continuation == Continue::kRequeue ? "#SBATCH --requeue\n" : "#SBATCH --no-requeue\n";
  text += fmt::format("# Time to save before the limit: {}.\n", job.lead.reason);
  text += fmt::format("#SBATCH --signal=B:USR1@{}\n", job.lead.seconds);
  return text;
}

std::string surroundings(const BatchJob& job) {
  const SlurmConfig& s = job.slurm;
  std::string text = fmt::format("\ncd -- {} || exit 1\n", shell_quoted(job.submitted_from));
  if (const auto modules = split_words(s.modules); !modules.empty()) {
    text += R"(
# A batch shell may not have the command that login shells have.
if ! type module >/dev/null 2>&1; then
  for file in /etc/profile.d/{modules,lmod,z00_lmod}.sh; do
    if [[ -r $file ]]; then source "$file"; fi
  done
fi
module load)";
    for (const std::string& module : modules) text += fmt::format(" {}", shell_quoted(module));
    text += " || exit 2\n";
  }
  if (const auto variables = split_words(s.environment); !variables.empty()) {
    text += "\n";
    for (const std::string& variable : variables) {
      const std::size_t equals = variable.find('=');
      text += fmt::format("export {}={}\n", variable.substr(0, equals),
                          shell_quoted(variable.substr(equals + 1)));
    }
  }
  return text;
}

std::string what_runs(const BatchJob& job) {
  std::string text = fmt::format(R"(
longspan={}
run_directory={}
# Every setting that is not the default, so that a restart does the same whatever has become of the
# configuration file.
settings=(
)",
                                 shell_quoted(job.program), shell_quoted(job.run_directory));
  for (std::size_t i = 0; i + 1 < job.settings.size(); i += 2)
    text += fmt::format("  {} {}\n", job.settings[i], shell_quoted(job.settings[i + 1]));
  text += ")\n";
  if (!job.slurm.array.empty())
    text += R"(# Each element of the array is a run of its own.
run_directory+=/$SLURM_ARRAY_TASK_ID
settings+=(--run.seed "$SLURM_ARRAY_TASK_ID")
)";
  text += "settings+=(--run.directory \"$run_directory\")\n";
  return text;
}

std::string srun_words(const BatchJob& job) {
  const int cpus = cpus_per_rank(job);
  return fmt::format(
      "srun --mpi=pmix --kill-on-bad-exit=1 --export=ALL --ntasks-per-node={}{} --cpu-bind={}",
      job.slurm.ranks_per_node, cpus > 0 ? fmt::format(" --cpus-per-task={}", cpus) : "",
      job.slurm.binding == Binding::kCores ? "cores" : "none");
}

std::string mpirun_words(const BatchJob& job) {
  const int cpus = cpus_per_rank(job);
  const bool bound = job.slurm.binding == Binding::kCores && cpus > 0;
  return fmt::format("mpirun --map-by ppr:{}:node{} --bind-to {}", job.slurm.ranks_per_node,
                     bound ? fmt::format(":PE={}", cpus) : "", bound ? "core" : "none");
}

/// Two spaces more in front of every line but the empty ones.
std::string indented(const std::string& lines) {
  std::string text;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (lines[i] != '\n' && (i == 0 || lines[i - 1] == '\n')) text += "  ";
    text += lines[i];
  }
  return text;
}

std::string starter(const BatchJob& job) {
  const std::string srun = fmt::format(R"(
# --kill-on-bad-exit: or else the ranks wait for ever for one that has crashed. --export=ALL: or else
# they get no PATH where the job was submitted with --export=NONE. The fence that Slurm 22.05 chooses
# by itself lets ranks leave MPI_Init too early: 4 starts in 100 crash.
export SLURM_PMIX_FENCE=ring
start=({})
)",
                                       srun_words(job));
  const std::string mpirun = fmt::format(R"(
# mpirun refuses to serve root unless told so.
if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
start=({})
)",
                                         mpirun_words(job));
  switch (job.slurm.starter) {
    case Starter::kSrun:
      return srun;
    case Starter::kMpirun:
      return mpirun;
    case Starter::kAuto:
      break;
  }
  return fmt::format(R"(
# The ranks find each other by PMIx. Where Slurm does not speak it, Open MPI's own starter does.
if [[ $(srun --mpi=list 2>&1) == *pmix* ]]; then{}else{}fi
)",
                     indented(srun), indented(mpirun));
}

constexpr std::string_view kSupervision = R"(
# Whoever wants the run to end for good makes this file.
if [[ -e $run_directory/stop ]]; then
  echo "longspan: $run_directory/stop exists: not started"
  exit 0
fi
echo "longspan: job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST, by ${start[0]}"

# Slurm warns this shell alone (--signal=B:), since what it sends to steps does not reach every rank
# under mpirun. srun and mpirun both pass on to all ranks what they get from here: the ranks agree
# on a step, save, and leave with status 75. SIGTERM (scancel, preemption, time is up) reaches the
# ranks without us; this shell has to outlive it.
signals=0
ranks=
trap 'signals=$((signals + 1)); if [[ $ranks ]]; then kill -USR1 "$ranks" 2>/dev/null; fi' USR1
trap 'signals=$((signals + 1))' TERM

status=75
if ((signals == 0)); then
  "${start[@]}" "$longspan" train "${settings[@]}" &
  ranks=$!
  if ((signals > 0)); then kill -USR1 "$ranks" 2>/dev/null; fi
  # A signal cuts wait short: only the status of a wait without one is that of the ranks.
  while :; do
    before=$signals
    wait "$ranks"
    status=$?
    if ((signals == before)); then break; fi
  done
fi

# Done, again, or stop: that is decided, written into the run's history and carried out there.
trap '' USR1 TERM
"$longspan" submit --after "$status" "${settings[@]}" ||
  echo "longspan: the run is not started again; the ranks ended with status $status" >&2
exit "$status"
)";

}  // namespace

SignalLead signal_lead(double step_seconds, double save_seconds, int margin_seconds,
                       std::int64_t limit_seconds) {
  const double step = step_seconds > 0 ? step_seconds : kAssumedSeconds;
  const double save = save_seconds > 0 ? save_seconds : kAssumedSeconds;
  const auto origin = [](double measured) { return measured > 0 ? "measured" : "assumed"; };
  SignalLead lead;
  lead.seconds = static_cast<std::int64_t>(
      std::ceil(std::min(step + save + margin_seconds, static_cast<double>(kLongestLead))));
  lead.reason = fmt::format("one step {:.2f} s ({}) + one save {:.2f} s ({}) + {} s margin", step,
                            origin(step_seconds), save, origin(save_seconds), margin_seconds);
  if (limit_seconds > 0 && lead.seconds > limit_seconds / 2) {
    lead.seconds = std::max<std::int64_t>(1, limit_seconds / 2);
    lead.reason += ", but at most half the time limit";
  }
  return lead;
}

std::string log_pattern(const BatchJob& job) {
  const char* const id = job.slurm.array.empty() ? "%j" : "%A_%a";
  if (!can_be_named(job.run_directory)) return fmt::format("longspan-{}.log", id);
  return fmt::format("{}/slurm-{}.log", without_patterns(job.run_directory), id);
}

std::string log_path(const BatchJob& job, const std::string& id) {
  const std::string name = fmt::format("{}{}.log", id, job.slurm.array.empty() ? "" : "_%a");
  if (!can_be_named(job.run_directory)) return job.submitted_from + "/longspan-" + name;
  return job.run_directory + "/slurm-" + name;
}

std::string batch_script(const BatchJob& job) {
  std::string text = fmt::format(
      "#!/bin/bash\n"
      "# Run {}: {} ranks on {} nodes. Written by longspan submit; the same settings give the same "
      "bytes.\n",
      sbatch_quoted(job.name), job.slurm.nodes * job.slurm.ranks_per_node, job.slurm.nodes);
  text += sbatch_lines(job);
  text += surroundings(job);
  text += what_runs(job);
  text += starter(job);
  text += kSupervision;
  return text;
}

}  // namespace longspan::slurm
