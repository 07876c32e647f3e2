/// The end of a job: whether the run goes on (slurm/continuation.hpp decides), and making it so.
#include <cstdlib>
#include <filesystem>

#include "launcher/run_history.hpp"
#include "launcher/submit.hpp"
#include "parallel/log.hpp"
#include "slurm/continuation.hpp"
#include "slurm/environment.hpp"
#include "slurm/sbatch.hpp"

namespace longspan::launcher {
namespace {

struct ThisJob {
  std::string id;          ///< as scontrol takes it
  std::string array_task;  ///< empty if it is not an element of an array
  int restart = 0;
};

ThisJob this_job() {
  const auto job = slurm::current_job();
  if (!job)
    fail_usage("submit: --after is for the batch script inside a job (SLURM_JOB_ID is not set)");
  const char* const task = std::getenv("SLURM_ARRAY_TASK_ID");
  return {slurm::job_address(), task == nullptr ? "" : task, job->restart_count};
}

/// What has happened since the run was submitted. An array is submitted in the folder above those
/// of its elements.
std::vector<RunEvent> events_since_submission(const std::string& directory, bool element) {
  double submitted = 0;
  if (element) {
    const std::string above =
        std::filesystem::absolute(directory).lexically_normal().parent_path().string();
    for (const RunEvent& event : read_history(above))
      if (event.event == "submitted") submitted = event.time;
  }
  std::vector<RunEvent> events;
  for (const RunEvent& event : read_history(directory)) {
    if (event.event == "submitted") events.clear();
    if (event.time >= submitted) events.push_back(event);
  }
  return events;
}

slurm::JobEnd job_end(const RunConfig& config, int status, const ThisJob& job) {
  slurm::JobEnd end;
  end.status = status;
  end.step = newest_step(config.directory());
  for (const RunEvent& event :
       events_since_submission(config.directory(), !job.array_task.empty())) {
    const bool restart = event.event == "requeued" || event.event == "chained";
    if (restart) end.restarts += 1;
    if (restart && event.step >= 0) end.previous_end = event.step;
    if ((restart || event.event == "submitted") && event.step >= 0) end.started = event.step;
  }
  // Slurm itself starts a job again when a node is lost or a more important job needs it.
  end.restarts = std::max(end.restarts, job.restart);
  end.stop_requested = stop_requested(config.directory());
  end.cancelled = slurm::job_facts(job.id).cancelled();
  return end;
}

}  // namespace

ExitStatus continue_run(const RunConfig& config, int status) {
  using What = slurm::Verdict::What;
  const ThisJob job = this_job();
  const slurm::JobEnd end = job_end(config, status, job);
  const slurm::Verdict verdict = slurm::judge(end, config.slurm);
  RunEvent event = {.event = "job-ended",
                    .job = job.id,
                    .restart = job.restart,
                    .step = end.step,
                    .status = status,
                    .note = verdict.why};
  if (verdict.what != What::kGoOn) {
    const bool wanted = verdict.what == What::kDone || end.stop_requested || end.cancelled;
    if (!wanted) event.event = "gave-up";
    append_event(config.directory(), event);
    log::info("longspan: {}{}", wanted ? "" : "not started again: ", verdict.why);
    return ExitStatus::kDone;
  }
  if (config.slurm.continuation == slurm::Continue::kChain) {
    const slurm::Submission next =
        slurm::submit_successor(job.id, job.array_task.empty() ? "" : "--array=" + job.array_task);
    if (next.job.empty()) {
      event.event = "gave-up", event.note += "; " + next.error;
      append_event(config.directory(), event);
      fail("no job follows: {}", next.error);
    }
    log::info("longspan: {}; job {} goes on", verdict.why, next.job);
    event.event = "chained", event.job = next.job;
    event.note += fmt::format("; after job {}", job.id);
    append_event(config.directory(), event);
    return ExitStatus::kDone;
  }
  // First the record: with its success the request ends this process.
  log::info("longspan: {}; the job begins again", verdict.why);
  event.event = "requeued";
  append_event(config.directory(), event);
  const std::string failure = slurm::requeue_job(job.id);
  if (failure.empty()) return ExitStatus::kDone;
  event.event = "gave-up", event.note = failure, event.time = 0;
  append_event(config.directory(), event);
  fail("the job does not begin again: {}: slurm.continue=chain needs no requeue", failure);
}

}  // namespace longspan::launcher
