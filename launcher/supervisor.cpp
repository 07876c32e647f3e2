#include "launcher/supervisor.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "parallel/error.hpp"

namespace longspan::launcher {

double pause_before(int restart) {
  constexpr double kLongest = 60;
  constexpr int kDoublings = 6;  // 64 s are more than the longest already
  return std::min(kLongest, std::ldexp(1.0, std::clamp(restart - 1, 0, kDoublings)));
}

Verdict Supervisor::judge(const Ending& ending) {
  using Kind = Verdict::Kind;
  const auto is = [&](ExitStatus status) { return ending.status == static_cast<int>(status); };
  // 75 without a signal is a limit that the user has set (train.stop-after): it is kept.
  if (is(ExitStatus::kDone) || is(ExitStatus::kRequeue) || ending.stop_wished) return {};
  if (is(ExitStatus::kUsage) || is(ExitStatus::kDamaged)) return {Kind::kGiveUp};
  // That is no crash, and nothing has been computed that could be lost. Later it may be a node that
  // is not back yet.
  if (!ending.began && !failed_) return {Kind::kGiveUp};
  if (max_restarts_ == 0) return {Kind::kGiveUp};
  const auto before = std::exchange(failed_, ending);
  if (before && before->step == ending.step && before->checkpoint == ending.checkpoint)
    return {Kind::kGiveUp, 0,
            fmt::format("step {} has failed twice: another start would fail there again",
                        ending.step + 1)};
  if (restarts_ >= max_restarts_)
    return {Kind::kGiveUp, 0,
            fmt::format("{} restart{} (--max-restarts) did not help", max_restarts_,
                        max_restarts_ == 1 ? "" : "s")};
  return {Kind::kRestart, pause_before(++restarts_)};
}

}  // namespace longspan::launcher
