/// Every call of a backend's operations as a span of parallel/trace.hpp, while that records. Names
/// are those of ProfiledKernels.
#pragma once

#include "model/kernels/observed.hpp"

namespace longspan::model {

/// While it records it waits until each call is done, so that spans last as long as the work: on a
/// device whose stream runs ahead, gaps between operations come out larger than they are.
class TracedKernels final : public ObservedKernels {
 public:
  using ObservedKernels::ObservedKernels;

 private:
  bool observing() const override;
  void observe(const OperationCall& operation, Stream& stream,
               const std::function<void()>& call) override;
};

}  // namespace longspan::model
