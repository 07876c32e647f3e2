/// One start of the ranks: mpirun as a child, between it and the user. What follows when it has
/// ended is supervisor.hpp's.
#pragma once

#include <array>
#include <chrono>
#include <csignal>

#include "launcher/launch.hpp"
#include "launcher/rank_output.hpp"

namespace longspan::launcher {

constexpr std::array kStopSignals = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};

/// Notes the stop signals while it lives; one at a time. They are blocked but inside the waits, so
/// that none is missed between a look and a wait.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  bool stop_wished() const;                       ///< a stop signal has come
  bool interrupted() const;                       ///< SIGINT has come twice: at once, please
  int last_signal() const;                        ///< 0 = none
  const sigset_t& mask() const { return mask_; }  ///< before this object
  /// Until one of the descriptors can be read (-1: is none), a signal comes, or the time is over.
  /// Returns which of them can be read.
  std::array<bool, 2> wait_readable(std::array<int, 2> descriptors,
                                    std::chrono::milliseconds at_most) const;

 private:
  sigset_t mask_;
  struct sigaction old_child_;
  std::array<struct sigaction, kStopSignals.size()> old_;
};

/// Runs the command and waits for it; what it says goes to `output`. SIGINT, SIGTERM, SIGHUP and
/// SIGUSR1 reach the ranks as SIGUSR1; a second SIGINT ends them for good. Returns the exit status
/// of the first rank that failed, 128 + n if signal n ended it, kRequeue (75) if the wish to stop
/// came before the ranks could know it. Throws Error if the command cannot be started.
int run_and_watch(const MpirunCommand& command, const StopSignals& signals, RankOutput& output);
/// The same once, with nobody else who minds the signals and without a log.
int run_and_watch(const MpirunCommand& command);

}  // namespace longspan::launcher
