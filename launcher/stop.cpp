/// `longspan stop`: the wish that a run saves and ends, and stays ended.
#include <fmt/format.h>

#include <chrono>
#include <thread>

#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/progress.hpp"
#include "launcher/queue.hpp"
#include "launcher/run_record.hpp"
#include "launcher/status.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

std::string where_it_stands(const SeenRun& run) {
  const auto& metrics = run.facts.metrics;
  return fmt::format("{}, step {}", to_string(run.status.state),
                     grouped(metrics ? metrics->step : 0));
}

SeenRun look_at_one(const std::string& directory) {
  return look_at({directory}).front();
}

/// Its job waits: it need not start for this. Should it start at this moment, it finds the file.
void stop_waiting_job(const SeenRun& run) {
  const std::string& directory = run.facts.directory;
  request_stop(directory);
  cancel_pending_job(run.status.job);
  const RunStatus after = look_at_one(directory).status;
  if (after.state == RunState::kRunning) {
    log::info("{}: job {} has started meanwhile; it was asked to save and end", directory,
              run.status.job);
    return;
  }
  const RunEvent ended = {.event = "ended",
                          .job = run.status.job,
                          .status = static_cast<int>(ExitStatus::kRequeue),
                          .where = this_host_and_process(),
                          .note = "longspan stop: cancelled in the queue"};
  append_event(directory, ended);
  log::info("{}: job {} was {}: cancelled", directory, run.status.job, to_string(run.status.state));
}

void stop(const SeenRun& run) {
  const std::string& directory = run.facts.directory;
  const RunState state = run.status.state;
  const bool queued = state == RunState::kPending || state == RunState::kRequeued;
  if (!goes_on(state)) {
    log::info("{} is not running ({}): nothing to stop", directory, where_it_stands(run));
  } else if (queued && !run.status.queued.state.empty()) {
    stop_waiting_job(run);
  } else {
    request_stop(directory);
    log::info(
        "{}: asked to save and end after the step under way ({}); longspan status shows when "
        "it has",
        directory, where_it_stands(run));
  }
}

}  // namespace

ExitStatus stop_command(const std::vector<std::string>& arguments) {
  const Arguments args(
      arguments, "stop",
      "asks runs to save and end after the step under way, and their supervisors not to start them "
      "again; cancels a job that still waits. RUN is a run directory or a name below runs/. The "
      "wish is gone when the user starts the run again",
      {{"wait", "", "return when they have ended; status 1 if one did not end well"}},
      "longspan stop runs/code --wait");
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  if (args.positional().empty()) fail_usage("stop: which run? longspan stop runs/NAME");
  const std::vector<std::string> directories = find_runs(args.positional());
  std::vector<std::string> stopping;
  for (const SeenRun& run : look_at(directories)) {
    if (goes_on(run.status.state)) stopping.push_back(run.facts.directory);
    stop(run);
  }
  ExitStatus result = ExitStatus::kDone;
  if (!args.has("wait")) return result;
  constexpr std::chrono::milliseconds kBetween(200), kBetweenQueue(2000);
  for (const std::string& directory : stopping) {
    SeenRun run = look_at_one(directory);
    for (; goes_on(run.status.state); run = look_at_one(directory))
      std::this_thread::sleep_for(run.status.job.empty() ? kBetween : kBetweenQueue);
    log::info("{} has ended ({})", directory, where_it_stands(run));
    if (run.status.state != RunState::kDone && run.status.state != RunState::kStopped)
      result = ExitStatus::kFailed;
  }
  return result;
}

}  // namespace longspan::launcher
