/// Saves of a run, as the training loop sees them: begun, noticed when they are over, survived when
/// they fail. Read next: io/checkpoint_saver.hpp, which writes beside the steps.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "launcher/deadline.hpp"
#include "launcher/training_run.hpp"

namespace longspan::launcher {

/// Saves, and keeps the run alive when it cannot: the previous checkpoint is still good, and the
/// next save may work. Saves in the background are noticed when they are over, by poll() or by the
/// next save.
class Saver {
 public:
  /// What saves take is told to `deadline`.
  Saver(TrainingRun& run, Deadline& deadline);
  /// Waits for the save under way.
  ~Saver();

  /// Collective. What is saved last, nobody has to wait for but the end of the run. A failure is a
  /// warning; throws AgreedError if another start of the run has taken over.
  void save(bool last);
  /// Reports the save under way if it is over. Does not communicate.
  void poll();
  /// Collective. Throws AgreedError if the newest state is not on disk.
  void finish();
  /// `step` is on disk: saving it again does nothing.
  void already_saved(std::int64_t step) { saved_step_ = step; }
  /// Saves under way: 0 or 1.
  int pending() const { return pending_; }

 private:
  void settle();
  void saved(std::int64_t step);
  void not_saved(std::int64_t step, const std::string& why);

  TrainingRun& run_;
  Deadline& deadline_;
  std::int64_t saved_step_ = -1;
  int pending_ = 0;
  double in_the_way_ = 0;  ///< seconds that the save under way has kept the steps waiting
  std::optional<std::string> failure_;
};

/// Seconds of a save until one has been measured: 12 bytes a parameter onto a slow disk.
double expected_save_seconds(const RunConfig& config);

}  // namespace longspan::launcher
