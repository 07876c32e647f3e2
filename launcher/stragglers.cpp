#include "launcher/stragglers.hpp"

#include <algorithm>

#include "launcher/world_check.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {

std::vector<StragglerRule::Slow> StragglerRule::judge(const std::vector<double>& seconds) {
  std::vector<double> sorted = seconds;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>((sorted.size() - 1) / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  const double median = *middle;
  std::vector<Slow> begun;
  for (std::size_t r = 0; r < seconds.size(); ++r) {
    const int rank = static_cast<int>(r);
    if (seconds[r] > kSlow * median) {
      if ((cost_[rank] += seconds[r] - median) > kWorthSeconds && slow_.insert(rank).second)
        begun.push_back({rank, seconds[r] / std::max(median, 1e-9)});
    } else if (seconds[r] < kRecovered * median) {
      slow_.erase(rank);
      cost_.erase(rank);
    }
  }
  return begun;
}

Stragglers::Stragglers(const Communicator& world)
    : world_(world), nodes_(world.gather(node_name(), 0)) {}

void Stragglers::step_done(std::int64_t step, double seconds) {
  if (world_.size() == 1) return;
  if (++steps_ > 0) sum_ += seconds;
  if (steps_ < kWindow) return;
  const std::vector<double> all = world_.all_gather(sum_);
  sum_ = 0;
  steps_ = 0;
  for (const StragglerRule::Slow& slow : rule_.judge(all))
    if (world_.rank() == 0)
      log::warn(
          "rank {} on {} is slow: {:.1f} x the median of all ranks' own work in steps {} to {} "
          "({:.3g} s a step): the others wait for it; look for other processes on that node, its "
          "clock rate and its memory",
          slow.rank, nodes_[static_cast<std::size_t>(slow.rank)], slow.times, step - kWindow + 1,
          step, all[static_cast<std::size_t>(slow.rank)] / kWindow);
}

}  // namespace longspan::launcher
