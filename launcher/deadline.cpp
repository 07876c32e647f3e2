#include "launcher/deadline.hpp"

#include <fmt/chrono.h>

#include <algorithm>
#include <ctime>

namespace longspan::launcher {
namespace {

/// Steps and saves vary, and to leave takes a moment too: flushing, MPI_Finalize.
constexpr double kMargin = 1.2, kLeaveSeconds = 1.0;

}  // namespace

Deadline::Deadline(Clock::time_point start, Duration limit, std::optional<Clock::time_point> end) {
  if (limit.seconds > 0) {
    own_end_ = start + std::chrono::seconds(limit.seconds);
    own_reason_ = fmt::format("train.time-limit={} is near", text_of(limit));
  }
  set_job_end(end);
}

void Deadline::set_job_end(std::optional<Clock::time_point> end) {
  end_ = own_end_, reason_ = own_reason_;
  if (!end || (end_ && *end_ < *end)) return;
  end_ = end;
  reason_ = fmt::format("the job ends at {:%H:%M:%S}", fmt::localtime(Clock::to_time_t(*end)));
}

void Deadline::note_step(double seconds) {
  step_ = std::max(step_, seconds);
}
void Deadline::note_save(double seconds) {
  save_ = std::max(save_, seconds);
}
void Deadline::expect_save(double seconds) {
  expected_save_ = seconds;
}

bool Deadline::reached(Clock::time_point now, int pending_saves) const {
  if (!end_) return false;
  const double save = save_ > 0 ? save_ : expected_save_;
  const double needed = kMargin * (step_ + save * (1 + pending_saves)) + kLeaveSeconds;
  return std::chrono::duration<double>(*end_ - now).count() < needed;
}

std::string Deadline::reason() const {
  return reason_;
}

}  // namespace longspan::launcher
