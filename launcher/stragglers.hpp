/// Ranks that hold up the others while the run goes on: their own work, without waiting for
/// anybody, takes longer than that of most. Read next: parallel/watchdog.hpp, for ranks that stop
/// altogether.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"

namespace longspan::launcher {

/// Decides from a window of steps who is slow. Pure.
class StragglerRule {
 public:
  static constexpr double kSlow = 1.3;       ///< times the median begins an episode
  static constexpr double kRecovered = 1.2;  ///< times the median ends it
  /// Who has cost the others less than this, in windows one after the other, is not worth a line:
  /// a moment's hiccup of short steps is none, and who stays slow is named in the end.
  static constexpr double kWorthSeconds = 1;

  struct Slow {
    int rank;
    double times;  ///< of the median
  };
  /// `seconds[r]`: rank r's work in the window. Returns the ranks whose episode begins now. The
  /// median of an even number of ranks is the lower one: of two ranks the slower one can be told.
  std::vector<Slow> judge(const std::vector<double>& seconds);

 private:
  std::set<int> slow_;          ///< reported, and not recovered yet
  std::map<int, double> cost_;  ///< seconds above the median, in the windows since it became slow
};

/// Gathers and reports, every kWindow steps.
class Stragglers {
 public:
  static constexpr int kWindow = 20;  ///< steps
  /// The first steps compile kernels and touch memory for the first time: they do not count.
  static constexpr int kSkipped = 3;

  /// Collective over `world`.
  explicit Stragglers(const Communicator& world);
  /// One step in which this rank has worked for `seconds`, waiting not included. Every kWindow
  /// calls: collective over the world, and rank 0 warns of new stragglers.
  void step_done(std::int64_t step, double seconds);

 private:
  const Communicator& world_;
  std::vector<std::string> nodes_;  ///< on rank 0
  StragglerRule rule_;
  double sum_ = 0;
  int steps_ = -kSkipped;
};

}  // namespace longspan::launcher
