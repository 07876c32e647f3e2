/// `longspan launch`: the ranks of a run, started with mpirun, and started again when they crash.
#include "launcher/launch.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <limits>

#include "io/file.hpp"
#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/hostfile.hpp"
#include "launcher/launch_ranks.hpp"
#include "launcher/options.hpp"
#include "launcher/run_directory.hpp"
#include "launcher/run_record.hpp"
#include "launcher/run_state.hpp"
#include "launcher/supervisor.hpp"
#include "parallel/log.hpp"
#include "parallel/mesh.hpp"
#include "slurm/environment.hpp"

namespace longspan::launcher {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kMostRestarts = 10;  ///< default of --max-restarts

/// A run under supervision: its ranks, over all their starts.
class Launch {
 public:
  Launch(std::string run_directory, int ranks, Places places, std::vector<std::string> train,
         bool fresh, int max_restarts)
      : directory_(std::move(run_directory)),
        ranks_(ranks),
        places_(std::move(places)),
        train_(std::move(train)),
        fresh_(fresh),
        supervisor_(max_restarts),
        log_(directory_) {}

  /// Returns the exit status of the ranks' last start.
  int run() {
    const StopSignals signals;
    for (;;) {
      RankOutput output(&log_);
      const std::size_t events_before = read_history(directory_).size();
      const std::string restarts = std::to_string(supervisor_.restarts());
      ::setenv(kRestartVariable, restarts.c_str(), 1);
      ::setenv(kLaunchVariable, fmt::format("{}:{}", this_host_and_process(), restarts).c_str(), 1);
      const int status = run_and_watch(command(), signals, output);
      const Ending ending = look(status, output, signals);
      const Verdict verdict = supervisor_.judge(ending);
      if (status != 0) complete_history(ending, events_before, output);
      if (verdict.kind == Verdict::Kind::kGiveUp) give_up(verdict, ending, output);
      if (verdict.kind != Verdict::Kind::kRestart) {
        // Under what others have said since, nobody would find it.
        if (verdict.why.empty() && failed(ending) && output.buried()) repeat(output);
        return status;
      }
      announce(verdict, ending, output);
      if (!pause(verdict.pause_seconds, signals)) {
        output.say(fmt::format("launch: the ranks are not started again: {}",
                               stop_requested(directory_) ? "longspan stop was asked for"
                                                          : "a signal to stop was received"));
        return status;
      }
    }
  }

  MpirunCommand command() const {
    std::vector<std::string> words = train_;
    // What the first start has saved is no reason to refuse the second.
    if (fresh_ && supervisor_.restarts() > 0)
      words.insert(words.end(), {"--checkpoint.resume", "auto"});
    const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
    return mpirun_command(ranks_, places_, self, words);
  }

 private:
  static bool failed(const Ending& ending) {
    return ending.status != 0 && ending.status != static_cast<int>(ExitStatus::kRequeue);
  }
  Ending look(int status, const RankOutput& output, const StopSignals& signals) const {
    Ending ending;
    ending.status = status;
    ending.began = output.began();
    if (const auto tail = read_metrics_tail(directory_ + "/metrics.jsonl"))
      ending.step = tail->step;
    ending.checkpoint = newest_checkpoint_seen(directory_).step;
    ending.stop_wished = signals.stop_wished() || stop_requested(directory_);
    return ending;
  }
  RunEvent event(const std::string& name, const Ending& ending, std::string note) const {
    const auto job = slurm::current_job();
    return {.event = name,
            .job = job ? job->id : "",
            .restart = supervisor_.restarts() + (job ? job->restart_count : 0),
            .step = ending.step,
            .ranks = ranks_,
            .status = ending.status,
            .where = this_host_and_process(),
            .note = std::move(note)};
  }
  /// Ranks that were killed could not write that they ended.
  void complete_history(const Ending& ending, std::size_t before, const RankOutput& output) const {
    bool started = false, ended = false;
    const auto history = read_history(directory_);
    for (std::size_t i = before; i < history.size(); ++i) {
      started = started || history[i].event == "started";
      ended = ended || history[i].event == "ended";
    }
    if (started && !ended) try_append_event(directory_, event("ended", ending, cause(output)));
  }
  static std::string cause(const RankOutput& output) {
    const std::string message = output.first_failure();
    constexpr std::string_view kProgram = "longspan: ";
    return message.starts_with(kProgram) ? message.substr(kProgram.size()) : message;
  }
  void repeat(RankOutput& output) const {
    if (const std::string message = cause(output); !message.empty())
      output.say("launch: what failed first: " + message);
  }
  void announce(const Verdict& verdict, const Ending& ending, RankOutput& output) const {
    const CheckpointSeen from = newest_checkpoint_seen(directory_);
    const std::string message = cause(output);
    output.say(fmt::format("launch: {}; restart {} of at most {} in {:.0f} s, from {}", message,
                           supervisor_.restarts(), supervisor_.max_restarts(),
                           verdict.pause_seconds, from.step < 0 ? "the beginning" : from.path));
    // A run that was never set up has no history.
    if (io::is_directory(directory_))
      try_append_event(directory_, event("restarted", ending, message));
  }
  void give_up(const Verdict& verdict, const Ending& ending, RankOutput& output) const {
    const std::string message = cause(output);
    if (!verdict.why.empty())
      output.say(fmt::format("launch: gave up: {}{}{}", verdict.why, message.empty() ? "" : ": ",
                             message));
    if (io::is_directory(directory_))
      try_append_event(
          directory_,
          event("gave-up", ending,
                verdict.why.empty() ? message
                                    : verdict.why + (message.empty() ? "" : ": ") + message));
  }
  /// False if somebody wants the run to stop meanwhile.
  bool pause(double seconds, const StopSignals& signals) const {
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    while (Clock::now() < end) {
      if (signals.stop_wished() || stop_requested(directory_)) return false;
      signals.wait_readable({-1, -1}, std::chrono::milliseconds(100));
    }
    return !signals.stop_wished() && !stop_requested(directory_);
  }

  std::string directory_;
  int ranks_;
  Places places_;
  std::vector<std::string> train_;
  bool fresh_;  ///< checkpoint.resume=never
  Supervisor supervisor_;
  LaunchLog log_;
};

/// A host's "slots" or Slurm's tasks say how many; else the user has to.
int wanted_ranks(const Arguments& args, const Places& places) {
  constexpr std::int64_t kMostRanks = 100000;
  if (!args.has("ranks")) {
    if (places.slots > 0) return places.slots;
    fail_usage("launch: how many ranks? --ranks N; this machine has {} cores", places.cores.count);
  }
  const std::int64_t ranks = args.integer("ranks");
  if (ranks < 1 || ranks > kMostRanks)
    fail_usage("launch: --ranks {}: it must be between 1 and {}", ranks, kMostRanks);
  if (!places.hostfile.empty() && places.slots > 0 && ranks > places.slots)
    fail_usage("launch: --ranks {} but {} has {} slots: raise slots=, or start fewer ranks", ranks,
               places.hostfile, places.slots);
  return static_cast<int>(ranks);
}

Places find_places(const Arguments& args) {
  Places places;
  places.cores = usable_cores();
  places.root = ::geteuid() == 0;
  if (args.has("hostfile")) {
    places.hostfile = args.text("hostfile");
    const auto hosts = read_hostfile(places.hostfile);
    places.slots = total_slots(hosts);
    places.several_nodes = !all_local(hosts);
    if (places.several_nodes) places.forwarded = variables_for_other_hosts();
  } else if (const auto job = slurm::current_job()) {
    places.several_nodes = job->node_list.find_first_of(",[") != std::string::npos;
    if (const char* tasks = std::getenv("SLURM_NTASKS")) places.slots = std::atoi(tasks);
  }
  return places;
}

/// The user wants this run to go on, whatever was wished before. A run that still goes on in this
/// directory is somebody else's: its wish to stop stays, and this start is refused.
void claim(const std::string& directory) {
  if (!io::is_directory(directory)) return;
  const RunDirectory nobody_else(directory);
  withdraw_stop(directory);
}

}  // namespace

ExitStatus launch_command(const std::vector<std::string>& arguments) {
  const Arguments args(
      arguments, "launch",
      "starts train on several ranks with mpirun, on this machine, on the hosts of a file or in "
      "the Slurm allocation around it, and returns their exit status. After a crash it starts them "
      "again from the last good checkpoint, after 1, 2, 4, ... at most 60 s; it gives up when the "
      "same step fails twice, and at once when the configuration (status 2) or a file (3) is at "
      "fault. Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or longspan stop let the ranks finish the step, "
      "save and leave with 75; a second Ctrl-C ends them at once. All that they say is also in "
      "launch.log of the run directory",
      {{"ranks", "N",
        "processes to start; each gets its share of the cores (default: the slots of the hostfile, "
        "the tasks of the allocation)"},
       {"config", "FILE", "settings, an INI file; --section.key VALUE overrides it"},
       {"hostfile", "FILE", "where to start them, mpirun's format: a line is HOST slots=N"},
       {"max-restarts", "N", "after crashes; 0 = none", std::to_string(kMostRestarts)},
       {"print", "", "only print the mpirun command"}},
      "longspan launch --ranks 2 --config configs/tiny.ini --mesh.context 2", true);
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  const Places places = find_places(args);
  const int ranks = wanted_ranks(args, places);
  const std::int64_t max_restarts = args.integer("max-restarts");
  if (max_restarts < 0 || max_restarts > std::numeric_limits<int>::max())
    fail_usage("launch: --max-restarts {}: it must be at least 0", max_restarts);

  // What is wrong with the settings is said here, once, and not by ranks that have to be started
  // for it.
  const RunConfig config = parse_config(args.text("config"), args.settings());
  if (!config.mesh.elastic) resolve_mesh(config.mesh, ranks);

  std::vector<std::string> train = {"train"};
  if (args.has("config")) train.insert(train.end(), {"--config", args.text("config")});
  train.insert(train.end(), args.settings().begin(), args.settings().end());
  Launch launch(config.directory(), ranks, places, train, config.checkpoint.resume == "never",
                static_cast<int>(max_restarts));
  if (args.has("print")) {
    log::line(shell_text(launch.command()));
    return ExitStatus::kDone;
  }
  claim(config.directory());
  return static_cast<ExitStatus>(launch.run());
}

}  // namespace longspan::launcher
