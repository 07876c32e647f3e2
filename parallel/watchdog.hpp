/// Names the rank that stops a run, then ends the job instead of burning the allocation.
///
/// Every rank has a thread that looks at its own open operations (flight_recorder.hpp). A rank that
/// was stopped cannot speak and MPI cannot be asked, so the ranks meet in a folder that they share,
/// `<run>/watch`:
///   rank-00003         that rank's account of itself (hang.hpp), renewed now and then
///   question           a number; a rank that has waited too long raises it, all live ranks answer
///   verdict            made by the one rank that speaks for all
///   flight-00003.json  written with the answer: the rank's last collectives
///   hang.txt           what was concluded, and one line for each rank
/// In a healthy run one file a rank is rewritten every quarter of the timeout, and nothing else.
///
/// Waits count while this process runs: a job that is suspended as a whole is not a hang.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "parallel/communicator.hpp"
#include "parallel/hang.hpp"

namespace longspan::parallel {

/// run.hang-timeout: "auto", "off" or seconds.
struct HangTimeout {
  bool enabled = true;
  double seconds = 0;  ///< 0 = auto
};
/// Nothing if `text` is neither.
std::optional<HangTimeout> parse_hang_timeout(const std::string& text);

/// How long a wait may last before somebody is named: what was asked for, or 10 x the median of the
/// last steps, at least 60 s.
double hang_limit(const HangTimeout& timeout, const std::deque<double>& step_seconds);
/// The same where ranks that are alive may take long: start, first steps, validation, saving.
double patient_limit(double limit);

class Watchdog {
 public:
  /// Starts watching, if there are peers and `timeout` is enabled on all; warns and does not if the
  /// ranks do not see the same `run_directory`. Call it after signals are set up. Collective over
  /// `world`, which must be the world.
  Watchdog(const HangTimeout& timeout, const std::string& run_directory, const Communicator& world);
  /// Tells the others that nobody has to wait for this rank any more. Does not communicate.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  bool active() const { return thread_.joinable(); }
  /// A step took that long, on the slowest rank.
  void step_done(double seconds);

 private:
  void watch();
  void look(double credit);
  /// This rank waits too long in `group`: asks all, judges, and ends the job unless it was nothing.
  /// `patient`: ranks that are alive may take long; `saving`: for answers too, the disk is busy.
  void decide(const WatchedGroup& group, double waited, bool patient, bool saving);
  void end_job(const HangVerdict& verdict, const std::vector<RankState>& states, double waited);
  RankState own_state() const;
  void write_state(bool ended);
  void write_records() const;
  std::string file(const std::string& name) const { return folder_ + "/" + name; }
  bool stopping() const;

  /// How long this rank has been in one operation.
  struct Age {
    WatchedGroup group;
    double seconds = 0, ask_again = 0;
  };

  HangTimeout timeout_;
  std::string folder_, node_;
  int rank_, ranks_;
  std::vector<Age> ages_;
  std::int64_t answered_ = 0;
  double since_written_ = 0, verdict_seen_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::deque<double> step_seconds_;  ///< of the last steps
  std::int64_t steps_ = 0;
  std::thread thread_;
};

}  // namespace longspan::parallel
