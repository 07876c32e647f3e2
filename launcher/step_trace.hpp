/// `log.trace = FILE`: one step of all ranks as a picture, for https://ui.perfetto.dev or
/// chrome://tracing. Every rank is a process in it; its tracks are the training thread (the step,
/// its phases, operations and waits inside each other), what is in flight between the ranks, the
/// threads that carry it out, the reader of the data and the writer of checkpoints.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/run_config.hpp"
#include "parallel/communicator.hpp"
#include "parallel/trace.hpp"

namespace longspan::launcher {

/// The "traceEvents" of one rank, a JSON array (Trace Event Format, Google 2016): complete events
/// "X", operations in flight as pairs "b" and "e", times in microseconds since `origin`.
std::string trace_events(const std::vector<trace::Event>& events, trace::Clock::time_point origin,
                         int rank, const std::string& device);
/// The file, from the arrays of the ranks.
std::string trace_file(const std::vector<std::string>& ranks, std::int64_t step);

/// Watches the steps of this start and writes the file of one of them.
class StepTrace {
 public:
  /// The ranks that are in the file; with more the first ones are.
  static constexpr int kMostRanks = 16;

  /// `device`: what the operations run on.
  StepTrace(const LogConfig& config, const Communicator& world, std::string device);
  /// Around every step, saves included. Where it is the one, ranks begin it together and end_step()
  /// gathers it on rank 0: collective. A file that cannot be written is a warning.
  void begin_step(std::int64_t step);
  void end_step();
  /// Says so if there was no such step.
  void finish() const;

 private:
  const LogConfig& config_;
  const Communicator& world_;
  std::string device_;
  std::int64_t steps_ = 0, step_ = 0;
  bool written_ = false;
  trace::Clock::time_point origin_;
};

}  // namespace longspan::launcher
