/// Slurm's queue as `longspan status` and `longspan stop` need it: squeue and scancel as processes,
/// so that nothing of Slurm has to be there when the program is built.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "launcher/run_state.hpp"

namespace longspan::launcher {

/// Output of a command that has answered.
struct Answer {
  int status = 0;
  std::string out, errors;
};
/// Runs `words` and waits; nothing if it cannot be started or does not end within `patience` (then
/// it is killed).
std::optional<Answer> ask(const std::vector<std::string>& words,
                          std::chrono::milliseconds patience);

/// Of these jobs, with one call of squeue. Jobs that are not in the queue are not in the answer.
/// Nothing if there is no squeue, or it does not answer within 10 s.
Queue ask_queue(std::vector<std::string> jobs);
/// Lines of `squeue -o %A|%T|%L|%r`. Pure.
std::map<std::string, QueuedJob> parse_squeue(const std::string& text);
/// "1-02:03:04", "03:04", "UNLIMITED": Slurm's durations in seconds; -1 for words.
double parse_slurm_duration(const std::string& text);

/// Takes the job out of the queue unless it runs already. Throws Error with scancel's own words.
void cancel_pending_job(const std::string& job);

}  // namespace longspan::launcher
