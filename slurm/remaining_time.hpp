/// When Slurm ends this job, asked of Slurm itself: signals come late, early (the controller looks
/// every 30 s), or not to every rank, and a limit can be changed while the job runs.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

namespace longspan::slurm {

/// Seconds of a time as Slurm writes it: "59" (minutes if `bare_minutes`, as sbatch --time; else
/// seconds), "4:59", "1:02:03", "2-03", "2-03:04", "2-03:04:05". Nothing for UNLIMITED, INVALID,
/// NOT_SET and the like.
std::optional<std::int64_t> parse_slurm_time(std::string_view text, bool bare_minutes = false);

/// Seconds left of job `id` by `squeue -o %L`, below 0 never; nothing without a limit or an answer
/// within 10 s.
std::optional<std::int64_t> query_seconds_left(const std::string& id);

/// Knows the end of a job without making anybody wait: a thread asks at once, then every minute.
class JobEndWatch {
 public:
  using Clock = std::chrono::system_clock;
  explicit JobEndWatch(std::string id, std::chrono::seconds every = std::chrono::minutes(1));
  ~JobEndWatch();
  JobEndWatch(const JobEndWatch&) = delete;
  JobEndWatch& operator=(const JobEndWatch&) = delete;
  /// As of the newest answer; nothing as long as there is none, or no limit. Cheap.
  std::optional<Clock::time_point> end() const;

 private:
  void watch(std::chrono::seconds every);
  const std::string id_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool over_ = false;
  std::optional<Clock::time_point> end_;
  std::thread thread_;  ///< last: it uses the others
};

}  // namespace longspan::slurm
