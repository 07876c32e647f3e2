/// The CPU's attention: blockwise, vectorised for the instruction set found at run time, on
/// omp_get_max_threads() OpenMP threads. Contracts are in model/kernels/attention.hpp; read next:
/// attention_forward.cpp.
#pragma once

#include "model/kernels/attention.hpp"

namespace longspan::model::cpu {

/// Throws Error if the shape is outside the contract (head size, head counts). Results depend on
/// neither the number of threads nor their timing: every row of o has one writer and a fixed order
/// of keys.
void attention_forward(const AttentionForwardArgs& args);

/// delta = rowsum(dout * o). No checks, no scratch memory.
void attention_delta(const AttentionDeltaArgs& args);

/// Throws Error as attention_forward. Results depend on neither the number of threads nor their
/// timing: partial gradients of fixed chunks are added in a fixed order. Queries whose lse is -inf
/// give and get nothing, whatever stands in their q, dout and delta.
void attention_backward(const AttentionBackwardArgs& args);

}  // namespace longspan::model::cpu
