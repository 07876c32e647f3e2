#include "model/lr_schedule.hpp"

#include <algorithm>
#include <cmath>

namespace longspan::model {

double learning_rate_at(const OptimizerConfig& config, std::int64_t step, std::int64_t steps) {
  const double peak = config.learning_rate, floor = config.minimum_learning_rate;
  if (step <= config.warmup_steps)
    return peak * static_cast<double>(step) / static_cast<double>(config.warmup_steps);
  const double length = static_cast<double>(std::max<std::int64_t>(1, steps - config.warmup_steps));
  const double progress = std::min(1.0, static_cast<double>(step - config.warmup_steps) / length);
  switch (config.schedule) {
    case ScheduleKind::kConstant:
      return peak;
    case ScheduleKind::kLinear:
      return peak + (floor - peak) * progress;
    case ScheduleKind::kCosine:
      return floor + (peak - floor) * 0.5 * (1.0 + std::cos(progress * 3.141592653589793));
  }
  return peak;
}

}  // namespace longspan::model
