/// The yardstick of the benchmarks: what oneDNN's sgemm reaches on 2048^3, measured in the same run
/// with the same threads.
#pragma once

#include <dnnl.h>

#include <algorithm>
#include <chrono>
#include <vector>

namespace longspan::testing_support {

/// FLOP/s, best of `repeats`.
inline double sgemm_peak(int repeats = 5, std::int64_t n = 2048) {
  const std::size_t count = static_cast<std::size_t>(n * n);
  std::vector<float> a(count, 1.0f), b(count, 1.0f), c(count);
  double best = 0;
  for (int i = 0; i <= repeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    dnnl_sgemm('N', 'N', n, n, n, 1.0f, a.data(), n, b.data(), n, 0.0f, c.data(), n);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    if (i > 0)
      best = std::max(best, 2.0 * static_cast<double>(n) * static_cast<double>(n) *
                                static_cast<double>(n) / seconds.count());
  }
  return best;
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0.0 : values[values.size() / 2];
}

}  // namespace longspan::testing_support
