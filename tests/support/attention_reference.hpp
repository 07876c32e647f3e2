/// Attention in plain loops and double precision, dense: what the kernels and every sharding are
/// compared with. Slow on purpose; read it to learn what the kernels compute.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/kernels/attention.hpp"

namespace longspan::testing_support {

/// Contiguous tensors: q, dout, o, dq [batch, queries, heads, head_size]; k, v, dk, dv [batch,
/// keys, kv_heads, head_size]; lse [batch, heads, queries].
struct AttentionInputs {
  std::vector<double> q, k, v, dout;
};
struct AttentionOutputs {
  std::vector<double> o, lse, dq, dk, dv;
};

/// The definition of the mask in model/kernels/attention.hpp, for one pair.
bool is_visible(const model::AttentionShape& shape, std::int64_t batch, std::int64_t query,
                std::int64_t key);

/// With an empty dout only o and lse are computed.
AttentionOutputs attention_reference(const model::AttentionShape& shape,
                                     const AttentionInputs& inputs);

/// |actual - expected| / max(|expected|, floor) in the Euclidean norm; |actual| if both are 0. NaN
/// if any is NaN.
double relative_error(std::span<const float> actual, std::span<const double> expected,
                      double floor = 0.0);

/// Largest |actual - expected|; equal infinities differ by 0. Infinity if only one is infinite or
/// any is NaN.
double largest_error(std::span<const float> actual, std::span<const double> expected);

}  // namespace longspan::testing_support
