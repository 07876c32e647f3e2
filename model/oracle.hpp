/// Dense attention and its gradient from the definition, in plain loops and double precision: what
/// `longspan verify` compares every sharding with. It shares nothing with the kernels, neither code
/// nor the shortcuts they take (no blocks, no merging, no rowsum(dout * o)), so that it cannot be
/// wrong in the same way. Slow on purpose; read it to learn what the kernels compute.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/kernels/attention.hpp"

namespace longspan::model {

/// Contiguous: q, dout [batch, queries, heads, head_size]; k, v [batch, keys, kv_heads, head_size].
struct OracleInputs {
  std::span<const float> q, k, v, dout;
};

/// output and dq are shaped like q, dk and dv like k; lse: [batch, heads, queries], -inf where a
/// query sees nothing (its output and its gradients are 0).
struct OracleOutputs {
  std::vector<double> output, lse, dq, dk, dv;
};

/// s = scale q k^T, p = softmax(s) over the visible keys, output = p v; for a loss whose gradient
/// in output is dout: dv = p^T dout, dp = dout v^T, ds = (diag(p) - p p^T) dp row by row, dq =
/// scale ds k, dk = scale ds^T q. Strides and merging do not exist here. Does not communicate. Time
/// is batch * heads * queries * keys * head_size, memory O(queries + keys) besides the outputs.
OracleOutputs attention_oracle(const AttentionShape& shape, const OracleInputs& inputs);

/// |actual - expected| / |expected| in the Euclidean norm; |actual| if expected is 0. Infinity if
/// the lengths differ or anything is NaN.
double relative_error(std::span<const float> actual, std::span<const double> expected);

/// Largest |actual - expected|; equal infinities differ by 0. Infinity if the lengths differ, if
/// only one of a pair is infinite, or if anything is NaN.
double largest_error(std::span<const float> actual, std::span<const double> expected);

}  // namespace longspan::model
