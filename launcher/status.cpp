/// `longspan status` and what it shows of a run.
#include "launcher/status.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <thread>

#include "io/file.hpp"
#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/options.hpp"
#include "launcher/progress.hpp"
#include "launcher/queue.hpp"
#include "launcher/table.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

constexpr const char* kRuns = "runs";

double now() {
  using namespace std::chrono;
  return duration<double>(system_clock::now().time_since_epoch()).count();
}

/// "12 s", "5 min", "3 h", "2 d"
std::string age_text(double seconds) {
  constexpr double kMinute = 60, kHour = 3600, kDay = 86400;
  if (seconds < kMinute) return fmt::format("{:.0f} s", std::max(0.0, seconds));
  if (seconds < 2 * kHour) return fmt::format("{:.0f} min", seconds / kMinute);
  if (seconds < 2 * kDay) return fmt::format("{:.0f} h", seconds / kHour);
  return fmt::format("{:.0f} d", seconds / kDay);
}

std::string eta_text(const RunStatus& status) {
  if (status.eta_seconds < 0) return "";
  const double left = status.queued.state == "RUNNING" ? status.queued.seconds_left : -1;
  std::string text = duration_text(status.eta_seconds);
  if (left >= 0)
    text += fmt::format(" {} {} left", left < status.eta_seconds ? "> limit," : "of",
                        duration_text(left));
  return text;
}

std::string steps_text(const RunFacts& facts) {
  const std::string step = facts.metrics ? grouped(facts.metrics->step) : "0";
  return facts.steps > 0 ? step + " / " + grouped(facts.steps) : step;
}

std::string job_text(const RunStatus& status) {
  if (status.job.empty() || status.queued.state.empty()) return status.job;
  return status.job + " " + status.queued.state;
}

std::string checkpoint_text(const RunFacts& facts, double time) {
  if (facts.checkpoint.step < 0) return "";
  return fmt::format("{}, {} ago", grouped(facts.checkpoint.step),
                     age_text(time - facts.checkpoint.written));
}

nlohmann::ordered_json to_json(const SeenRun& run, double time) {
  const auto& [facts, status] = run;
  nlohmann::ordered_json line = {{"run", facts.directory}, {"state", to_string(status.state)}};
  if (!status.job.empty()) {
    line["job"] = status.job;
    line["queue_state"] = status.queued.state.empty() ? nlohmann::ordered_json()
                                                      : nlohmann::ordered_json(status.queued.state);
    if (status.queued.seconds_left >= 0) line["job_seconds_left"] = status.queued.seconds_left;
  }
  line["step"] = facts.metrics ? facts.metrics->step : 0;
  if (facts.steps > 0) line["steps"] = facts.steps;
  if (facts.metrics) {
    line["loss"] = facts.metrics->loss;
    line["tokens_per_second"] = facts.metrics->tokens_per_second;
  }
  if (status.eta_seconds >= 0) line["eta_seconds"] = status.eta_seconds;
  line["restarts"] = status.restarts;
  if (facts.checkpoint.step >= 0) {
    line["checkpoint"] = facts.checkpoint.path;
    line["checkpoint_step"] = facts.checkpoint.step;
    line["checkpoint_age_seconds"] = time - facts.checkpoint.written;
  }
  if (!status.note.empty()) line["note"] = status.note;
  return line;
}

Table table_of(const std::vector<SeenRun>& runs, double time) {
  using Align = Table::Align;
  Table table({{"run", Align::kLeft},
               {"state", Align::kLeft},
               {"job", Align::kLeft},
               {"step"},
               {"loss"},
               {"tokens/s"},
               {"time to go"},
               {"restarts"},
               {"checkpoint"},
               {"", Align::kLeft}});
  for (const auto& [facts, status] : runs) {
    const bool runs_now = status.state == RunState::kRunning;
    table.add(
        {facts.directory, to_string(status.state), job_text(status), steps_text(facts),
         facts.metrics ? fmt::format("{:.4f}", facts.metrics->loss) : "",
         facts.metrics && runs_now ? fmt::format("{:.0f}", facts.metrics->tokens_per_second) : "",
         eta_text(status), status.restarts > 0 ? std::to_string(status.restarts) : "",
         checkpoint_text(facts, time), status.note});
  }
  return table;
}

/// What a line in a pipe is worth: not the time that passes.
std::string key_of(const SeenRun& run) {
  return fmt::format("{} {} {} {} {}", to_string(run.status.state), job_text(run.status),
                     run.facts.metrics ? run.facts.metrics->step : 0, run.facts.checkpoint.step,
                     run.status.restarts);
}

std::string change_text(const SeenRun& run) {
  const auto& [facts, status] = run;
  std::string text = fmt::format("{}: {}", facts.directory, to_string(status.state));
  if (!status.job.empty()) text += ", job " + job_text(status);
  text += ", step " + steps_text(facts);
  if (facts.metrics) text += fmt::format(", loss {:.4f}", facts.metrics->loss);
  if (const std::string eta = eta_text(status); !eta.empty()) text += ", to go: " + eta;
  if (facts.checkpoint.step >= 0) text += ", checkpoint " + grouped(facts.checkpoint.step);
  if (!status.note.empty()) text += ", " + status.note;
  return text;
}

bool anybody_goes_on(const std::vector<SeenRun>& runs) {
  return std::any_of(runs.begin(), runs.end(),
                     [](const SeenRun& run) { return goes_on(run.status.state); });
}

/// Redraws on a terminal, adds lines in a pipe, until nothing goes on any more.
void follow(const std::vector<std::string>& directories, std::chrono::milliseconds every,
            bool json) {
  const bool terminal = ::isatty(STDOUT_FILENO) != 0 && !json;
  std::map<std::string, std::string> shown;
  for (;;) {
    const std::vector<SeenRun> runs = look_at(directories);
    if (terminal) {
      fmt::print("\x1b[H\x1b[J{}", table_of(runs, now()).text());
    } else {
      for (const SeenRun& run : runs) {
        std::string& last = shown[run.facts.directory];
        if (const std::string key = key_of(run); last != key) {
          last = key;
          if (json)
            fmt::print("{}\n", to_json(run, now()).dump());
          else
            fmt::print("{}\n", change_text(run));
        }
      }
    }
    std::fflush(stdout);
    if (!anybody_goes_on(runs)) return;
    std::this_thread::sleep_for(every);
  }
}

}  // namespace

std::vector<std::string> find_runs(const std::vector<std::string>& names) {
  std::vector<std::string> directories;
  if (names.empty()) {
    for (const std::string& name : io::list_directory(kRuns))
      if (const std::string path = fmt::format("{}/{}", kRuns, name); is_run(path))
        directories.push_back(path);
    return directories;
  }
  std::vector<std::string> known;
  for (std::string name : names) {
    while (name.size() > 1 && name.back() == '/') name.pop_back();
    const std::string below = fmt::format("{}/{}", kRuns, name);
    if (is_run(name)) {
      directories.push_back(name);
    } else if (is_run(below)) {
      directories.push_back(below);
    } else {
      const std::string near = nearest(name, io::list_directory(kRuns));
      fail_usage("{}: no run directory, and no name of one in {}/{}", name, kRuns,
                 near.empty() ? "" : ": did you mean " + near + "?");
    }
  }
  return directories;
}

std::vector<SeenRun> look_at(const std::vector<std::string>& directories) {
  std::vector<SeenRun> runs;
  std::vector<std::string> jobs;
  const double time = now();
  for (const std::string& directory : directories) {
    SeenRun run;
    run.facts = read_run(directory);
    run.status = status_of(run.facts, std::nullopt, time);
    // What has ended well is in no queue.
    if (!run.status.job.empty() && run.status.state != RunState::kDone)
      jobs.push_back(run.status.job);
    runs.push_back(std::move(run));
  }
  if (jobs.empty()) return runs;
  const Queue queue = ask_queue(jobs);
  for (SeenRun& run : runs) run.status = status_of(run.facts, queue, time);
  return runs;
}

ExitStatus status_command(const std::vector<std::string>& arguments) {
  const Arguments args(
      arguments, "status",
      "shows where runs stand: RUN is a run directory or a name below runs/; without one, all runs "
      "below runs/. Reads only the ends of files and asks Slurm's queue once",
      {{"json", "", "one JSON object instead of a table; with --follow one a line"},
       {"follow", "",
        "keep looking until the runs have ended: redraws a terminal, adds lines of "
        "what changes in a pipe"},
       {"every", "SECONDS", "of --follow", "2"}},
      "longspan status runs/code --follow");
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  const double every = args.number("every");
  if (!(every > 0) || every > 86400)
    fail_usage("status: --every {}: it must be above 0 and at most 86400 seconds", every);
  const std::vector<std::string> directories = find_runs(args.positional());
  if (args.has("follow")) {
    follow(directories, std::chrono::milliseconds(std::max(1L, std::lround(1000 * every))),
           args.has("json"));
    return ExitStatus::kDone;
  }
  const std::vector<SeenRun> runs = look_at(directories);
  if (args.has("json")) {
    nlohmann::ordered_json all = nlohmann::ordered_json::array();
    for (const SeenRun& run : runs) all.push_back(to_json(run, now()));
    fmt::print("{}\n", nlohmann::ordered_json{{"runs", all}}.dump(2));
  } else if (runs.empty()) {
    fmt::print("no runs below {}/: longspan launch starts one\n", kRuns);
  } else {
    fmt::print("{}", table_of(runs, now()).text());
  }
  return ExitStatus::kDone;
}

}  // namespace longspan::launcher
