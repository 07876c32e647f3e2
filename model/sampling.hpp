/// Choosing the next token from logits: temperature, top-k and top-p (Holtzman et al. 2020), with
/// counter-based random numbers.
#pragma once

#include <cstdint>
#include <vector>

namespace longspan::model {

struct SamplingConfig {
  double temperature = 1.0;  ///< 0 = greedy: the largest logit, the lowest id among equals
  std::int64_t top_k = 0;    ///< 0 = all
  double top_p = 1.0;        ///< smallest set of tokens whose probabilities reach this
  std::uint64_t seed = 1;
};

/// Token for draw number `draw` of this seed; the same arguments always give the same token. Only
/// ids below `vocabulary` are chosen.
std::int32_t sample_token(const std::vector<float>& logits, std::int64_t vocabulary,
                          const SamplingConfig& config, std::uint64_t draw);

}  // namespace longspan::model
