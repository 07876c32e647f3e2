/// Where a step's time goes: a backend's operations with a stop-watch around each. `log.profile=on`
/// puts it between the model and the kernels; nothing else knows.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/kernels/observed.hpp"

namespace longspan::model {

/// Of all calls of one operation.
struct OperationTotals {
  std::string name;
  std::int64_t calls = 0;
  double seconds = 0;
  double flops = 0, bytes = 0;  ///< as of OperationCall
};

/// Passes every call on, waits until it is done, and adds up. On a device whose stream runs ahead
/// the waiting changes the step; on the CPU it costs two looks at the clock a call. One thread at a
/// time.
class ProfiledKernels final : public ObservedKernels {
 public:
  using ObservedKernels::ObservedKernels;
  void clear() { totals_.clear(); }
  /// Most time first.
  std::vector<OperationTotals> totals() const;

 private:
  void observe(const OperationCall& operation, Stream& stream,
               const std::function<void()>& call) override;

  std::map<std::string, OperationTotals> totals_;
};

}  // namespace longspan::model
