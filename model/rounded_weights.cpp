#include "model/rounded_weights.hpp"

#include <utility>

namespace longspan::model {

RoundedWeights::RoundedWeights(std::vector<FlatRange> units, int first_unit, bool whole,
                               Backend backend)
    : units_(std::move(units)),
      copies_(units_.size()),
      first_unit_(first_unit),
      whole_(whole),
      backend_(backend) {
  if (!whole_) return;
  for (std::size_t u = static_cast<std::size_t>(first_unit); u < units_.size(); ++u)
    copies_[u].rounded = Buffer<std::uint16_t>(backend_.device, units_[u].count);
}

void RoundedWeights::begin_pass() {
  for (Copy& copy : copies_) copy.stale = true;
}

void RoundedWeights::need(int unit, const float* weights) {
  if (unit < first_unit_) return;
  Copy& copy = copies_[static_cast<std::size_t>(unit)];
  const std::int64_t count = units_[static_cast<std::size_t>(unit)].count;
  if (copy.rounded.empty() && count > 0) {
    copy.rounded = Buffer<std::uint16_t>(backend_.device, count);
    copy.stale = true;
  }
  if (!std::exchange(copy.stale, false)) return;
  backend_.kernels.to_bf16(1, count, weights, count, copy.rounded.data(), backend_.stream);
}

void RoundedWeights::done(int unit) {
  if (!whole_) copies_[static_cast<std::size_t>(unit)].rounded.clear();
}

const std::uint16_t* RoundedWeights::at(int unit) const {
  const Buffer<std::uint16_t>& rounded = copies_[static_cast<std::size_t>(unit)].rounded;
  return rounded.empty() ? nullptr : rounded.data();
}

}  // namespace longspan::model
