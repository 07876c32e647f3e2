/// One range of the work per OpenMP thread, and no threads at all where waking them costs more than
/// the work.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace longspan::model::cpu {

/// Work on fewer elements (4 bytes each, a few operations) than this stays on the calling thread:
/// about 10 microseconds, what a fork and join costs.
constexpr std::int64_t kSerialElements = 32768;

/// Calls work(begin, end) for consecutive ranges that cover [0, total) once, all but the last
/// beginning and ending at a multiple of `unit`. An item of the range stands for `elements_each`
/// elements. `work` must not throw.
template <class Work>
void parallel_ranges(std::int64_t total, std::int64_t unit, std::int64_t elements_each,
                     const Work& work) {
  if (total <= 0) return;
  const std::int64_t units = (total + unit - 1) / unit;
  const std::int64_t threads = std::min<std::int64_t>(omp_get_max_threads(), units);
  if (threads <= 1 || total * elements_each < kSerialElements) {
    work(std::int64_t{0}, total);
    return;
  }
  // The whole team even if some have no range: libgomp ends and starts threads when a team's size
  // changes.
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < threads; ++t) {
    const std::int64_t begin = units * t / threads * unit;
    work(begin, std::min(total, units * (t + 1) / threads * unit));
  }
}

/// Elements per cache line: the unit of element-wise work, so that no two threads write to one
/// line.
constexpr std::int64_t kLine = 16;

}  // namespace longspan::model::cpu
