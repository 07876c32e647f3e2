#include "launcher/stopping.hpp"

#include <fmt/format.h>

#include "slurm/signals.hpp"

namespace longspan::launcher {

std::string wish_to_stop(const Communicator& world, const Deadline& deadline, int pending_saves,
                         bool stop_requested) {
  // Above all signals: one reduction for all.
  constexpr std::int64_t kTimeIsUp = 1 << 16, kStopRequested = 1 << 17;
  const bool late = deadline.reached(Deadline::Clock::now(), pending_saves);
  const std::int64_t wish = world.all_reduce_max(stop_requested ? kStopRequested
                                                 : late         ? kTimeIsUp
                                                                : slurm::stop_signal());
  if (wish == 0) return "";
  if (wish == kStopRequested) return "longspan stop was asked for";
  // Also on a rank that does not know of the end: it stops with those that do.
  if (wish == kTimeIsUp) return deadline.reason().empty() ? "the job ends soon" : deadline.reason();
  return fmt::format("{} was received", slurm::signal_name(static_cast<int>(wish)));
}

void Patience::note(double loss) {
  if (loss < best_)
    best_ = loss, without_better_ = 0;
  else
    ++without_better_;
}

std::string Patience::reason() const {
  return fmt::format("the validation loss has not improved on {:.4f} for {} validations", best_,
                     without_better_);
}

}  // namespace longspan::launcher
