/// The runs of a study as Slurm jobs.
#include <fmt/format.h>

#include <chrono>
#include <filesystem>

#include "launcher/options.hpp"
#include "launcher/queue.hpp"
#include "launcher/run_history.hpp"
#include "launcher/run_state.hpp"
#include "launcher/study_run.hpp"
#include "launcher/submit.hpp"
#include "parallel/log.hpp"
#include "slurm/sbatch.hpp"

namespace longspan::launcher {
namespace {

namespace fs = std::filesystem;

std::string newest_job(const std::vector<RunEvent>& history) {
  std::string job;
  for (const RunEvent& event : history)
    if (!event.job.empty()) job = event.job;
  return job;
}

/// Why a job's run has failed, one line.
std::string failure_of(const RunFacts& facts, const RunStatus& status) {
  std::string note;
  for (const RunEvent& event : facts.history)
    if (event.event == "ended" && event.status != 0) note = event.note;
  if (note.empty()) note = status.note;
  if (note.empty()) note = "its job has ended without a word: see its log in the run directory";
  return note.substr(0, note.find('\n'));
}

/// One run per job: a start that goes on where another one ended has measured less than asked for.
std::string submit_run(const StudyFolder& folder, std::size_t point, std::int64_t repeat) {
  const StudyPoint& p = folder.study().points[point];
  const std::string directory = folder.run_directory(point, repeat);
  std::vector<std::string> settings = settings_of(p);
  settings.insert(settings.end(), {"--run.name", p.name, "--run.directory", directory});
  RunConfig config = parse_config(folder.config_path(), settings);
  config.slurm.nodes = p.nodes;
  config.slurm.ranks_per_node = p.ranks() / p.nodes;
  const slurm::BatchJob job =
      batch_job(config, fs::read_symlink("/proc/self/exe").string(), fs::current_path().string());
  io::remove_path(directory);
  io::make_directories(directory);  // sbatch does not make the folder of the log
  const slurm::Submission submission = slurm::submit_script(slurm::batch_script(job));
  if (submission.job.empty()) {
    io::remove_path(directory);
    fail("{} was not submitted: {}", p.name, submission.error);
  }
  append_event(directory, {.event = "submitted",
                           .job = submission.job,
                           .step = 0,
                           .ranks = p.ranks(),
                           .where = slurm::log_path(job, submission.job)});
  return submission.job;
}

}  // namespace

StudyState submit_study(const StudyFolder& folder, const Say& say) {
  const auto& points = folder.study().points;
  const auto repeats = static_cast<std::size_t>(folder.spec().repeats);
  StudyState state;
  state.results = folder.results();
  state.unfinished.assign(points.size(), std::vector<Unfinished>(repeats, Unfinished::kNotRun));
  std::vector<std::string> jobs;
  for (std::size_t p = 0; p < points.size(); ++p)
    for (std::size_t r = 0; r < repeats; ++r)
      if (!state.results[p][r])
        if (const std::string job =
                newest_job(read_history(folder.run_directory(p, static_cast<std::int64_t>(r))));
            !job.empty())
          jobs.push_back(job);
  const Queue queue = ask_queue(jobs);
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  for (std::size_t r = 0; r < repeats; ++r)
    for (std::size_t p = 0; p < points.size(); ++p) {
      auto& result = state.results[p][r];
      if (result) continue;
      const auto repeat = static_cast<std::int64_t>(r);
      const std::string directory = folder.run_directory(p, repeat);
      const RunFacts facts = read_run(directory);
      const RunStatus status = status_of(facts, queue, now);
      state.unfinished[p][r] = Unfinished::kWaiting;
      if (!status.job.empty() && goes_on(status.state)) {
        if (status.state == RunState::kRunning) state.unfinished[p][r] = Unfinished::kRunning;
        continue;
      }
      if (!status.job.empty() && status.state == RunState::kDone) {
        result = collect_run(directory, folder.spec().warmup, points[p].tokens());
      } else if (!status.job.empty() &&
                 (status.state == RunState::kFailed || status.state == RunState::kGone)) {
        result.emplace().error = failure_of(facts, status);
      } else {
        const std::string job = submit_run(folder, p, repeat);
        say(fmt::format("submitted job {}: {}, run {}", job, points[p].name, r + 1));
        continue;
      }
      folder.write_result(p, repeat, *result);
      io::remove_path(directory + "/checkpoints");
    }
  return state;
}

}  // namespace longspan::launcher
