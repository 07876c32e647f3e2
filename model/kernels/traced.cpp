#include "model/kernels/traced.hpp"

#include "parallel/trace.hpp"

namespace longspan::model {

bool TracedKernels::observing() const {
  return trace::recorder().on();
}

void TracedKernels::observe(const OperationCall& operation, Stream& stream,
                            const std::function<void()>& call) {
  stream.synchronize();
  trace::Numbers numbers = {{"bytes", operation.bytes}};
  if (operation.flops > 0) numbers.emplace_back("flops", operation.flops);
  const trace::Span span(operation.name, std::move(numbers));
  call();
  stream.synchronize();
}

}  // namespace longspan::model
