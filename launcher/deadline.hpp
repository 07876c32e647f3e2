/// When a run has to save and leave because its time is up: early enough for one more step and one
/// save, as long as these have taken so far. Each rank has one and asks it after every step; the
/// ranks' clocks and measurements differ, so the answers are agreed on (train.cpp).
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "launcher/duration.hpp"

namespace longspan::launcher {

class Deadline {
 public:
  using Clock = std::chrono::system_clock;  // as batch systems give their ends

  /// `limit` from `start` on (train.time-limit; 0 = none), or `end` (of a batch job; nothing =
  /// none): whichever comes first.
  Deadline(Clock::time_point start, Duration limit, std::optional<Clock::time_point> end);

  /// The batch job's end is another one now, or not known.
  void set_job_end(std::optional<Clock::time_point> end);

  /// What a step (with its validation, if it had one) and a save have taken. The longest ones
  /// count: to leave a little early costs little, to be late costs all since the last checkpoint.
  void note_step(double seconds);
  void note_save(double seconds);
  /// Assumed for a save until one has been measured.
  void expect_save(double seconds);

  /// True when after `now` one more step might leave no time for the save. `pending_saves`: those
  /// under way, which the last one waits for. Never true without an end.
  bool reached(Clock::time_point now, int pending_saves = 0) const;
  /// "train.time-limit=0:45:00 is near" or "the job ends at 17:45:00"; empty without an end.
  std::string reason() const;

 private:
  std::optional<Clock::time_point> own_end_;  ///< of train.time-limit
  std::string own_reason_;
  std::optional<Clock::time_point> end_;  ///< whichever comes first
  std::string reason_;
  double step_ = 0, save_ = 0, expected_save_ = 0;  ///< seconds
};

}  // namespace longspan::launcher
