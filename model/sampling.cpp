#include "model/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "parallel/random.hpp"

namespace longspan::model {

std::int32_t sample_token(const std::vector<float>& logits, std::int64_t vocabulary,
                          const SamplingConfig& config, std::uint64_t draw) {
  const auto end = logits.begin() + static_cast<std::ptrdiff_t>(std::min<std::int64_t>(
                                        vocabulary, static_cast<std::int64_t>(logits.size())));
  if (config.temperature <= 0.0)
    return static_cast<std::int32_t>(std::max_element(logits.begin(), end) - logits.begin());

  std::vector<std::int32_t> order(static_cast<std::size_t>(end - logits.begin()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  if (config.top_k > 0 && config.top_k < static_cast<std::int64_t>(order.size()))
    order.resize(static_cast<std::size_t>(config.top_k));

  std::vector<double> probability(order.size());
  const double largest = logits[static_cast<std::size_t>(order[0])];
  double total = 0;
  for (std::size_t i = 0; i < order.size(); ++i)
    total += probability[i] =
        std::exp((logits[static_cast<std::size_t>(order[i])] - largest) / config.temperature);

  // Nucleus: cut after the token that reaches top_p, always at least one.
  double kept = 0;
  std::size_t count = 0;
  while (count < order.size() && (count == 0 || kept < config.top_p * total))
    kept += probability[count++];

  const PhiloxBlock words = philox(derive_key(config.seed, 0x73616d706c65), 0, draw);
  const double target =
      kept * (static_cast<double>((std::uint64_t{words[0]} << 21) ^ words[1]) * 0x1.0p-53);
  double reached = 0;
  for (std::size_t i = 0; i + 1 < count; ++i)
    if ((reached += probability[i]) > target) return order[i];
  return order[count - 1];
}

}  // namespace longspan::model
