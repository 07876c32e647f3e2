#include "launcher/run_record.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "io/file.hpp"
#include "parallel/log.hpp"
#include "slurm/environment.hpp"

namespace longspan::launcher {

std::string this_host_and_process() {
  std::array<char, 256> name = {};
  ::gethostname(name.data(), name.size() - 1);
  return fmt::format("{}:{}", name.data(), ::getpid());
}

bool started_by_supervisor(const std::string& run_directory) {
  if (std::getenv(kRestartVariable) != nullptr) return true;
  const auto job = slurm::current_job();
  if (!job) return false;
  if (job->restart_count > 0) return true;
  // The job that `submit` has made, or a job made by that one.
  const auto history = read_history(run_directory);
  return std::any_of(history.begin(), history.end(), [&](const RunEvent& event) {
    return event.job == job->id && event.event != "started" && event.event != "ended";
  });
}

void try_append_event(const std::string& run_directory, const RunEvent& event) {
  // A folder that is gone is not made anew: it would not be the one with the checkpoints.
  if (!io::is_directory(run_directory)) return;
  try {
    append_event(run_directory, event);
  } catch (const Error& e) {
    log::warn("{}: the run's history lacks that it {}", e.what(), event.event);
  }
}

void RunRecord::started(const std::string& run_directory, int ranks, std::int64_t step) {
  directory_ = run_directory;
  event_.event = "started";
  event_.ranks = ranks;
  event_.step = step;
  event_.where = this_host_and_process();
  if (const auto job = slurm::current_job()) {
    event_.job = job->id;
    event_.restart = job->restart_count;
  }
  // Inside a job, launch counts on from the job's own restarts.
  if (const char* restart = std::getenv(kRestartVariable)) event_.restart += std::atoi(restart);
  try_append_event(directory_, event_);
}

void RunRecord::ended(ExitStatus status, const std::string& note) {
  if (directory_.empty()) return;
  event_.event = "ended";
  event_.status = static_cast<int>(status);
  event_.note = note;
  try_append_event(directory_, event_);
  directory_.clear();
}

}  // namespace longspan::launcher
