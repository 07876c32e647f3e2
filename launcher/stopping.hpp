/// Why a run stops before its last step. Read next: deadline.hpp, slurm/signals.hpp.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "launcher/deadline.hpp"
#include "parallel/communicator.hpp"

namespace longspan::launcher {

/// Why all ranks stop now, at one and the same step boundary; empty: they go on. Signals reach the
/// ranks at different moments, or only some of them, and their clocks differ. Collective.
std::string wish_to_stop(const Communicator& world, const Deadline& deadline, int pending_saves,
                         bool stop_requested);

/// When to give up hope: train.patience validations in a row without a better loss.
class Patience {
 public:
  /// `allowed` validations; 0 = hope for ever.
  explicit Patience(std::int64_t allowed) : allowed_(allowed) {}
  void note(double loss);
  bool exhausted() const { return allowed_ > 0 && without_better_ >= allowed_; }
  std::string reason() const;

 private:
  std::int64_t allowed_, without_better_ = 0;
  double best_ = std::numeric_limits<double>::infinity();
};

}  // namespace longspan::launcher
