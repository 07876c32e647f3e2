#include "model/kernels/profiled.hpp"

#include <algorithm>
#include <chrono>

namespace longspan::model {

void ProfiledKernels::observe(const OperationCall& operation, Stream& stream,
                              const std::function<void()>& call) {
  stream.synchronize();  // what was submitted by others, such as copies
  const auto begin = std::chrono::steady_clock::now();
  call();
  stream.synchronize();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  OperationTotals& totals = totals_[operation.name];
  totals.name = operation.name;
  totals.calls += 1;
  totals.seconds += seconds.count();
  totals.flops += operation.flops;
  totals.bytes += operation.bytes;
}

std::vector<OperationTotals> ProfiledKernels::totals() const {
  std::vector<OperationTotals> all;
  for (const auto& [name, totals] : totals_) all.push_back(totals);
  std::stable_sort(all.begin(), all.end(), [](const OperationTotals& a, const OperationTotals& b) {
    return a.seconds > b.seconds;
  });
  return all;
}

}  // namespace longspan::model
