/// Matrix product, the operation that carries most of the FLOPs.
#pragma once

#include <cstdint>

namespace longspan::model {

/// c[M,N] = op(a)[M,K] * op(b)[K,N] + (accumulate ? c : 0) + bias[N]; fp32 accumulation, row-major.
/// trans_a: `a` is stored [K,M]; trans_b: `b` is stored [N,K] (a linear layer's weight [out,in]).
/// lda, ldb, ldc: elements between rows as stored. c must not overlap a or b. bias may be null.
/// bf16_operands: a and b are rounded to bfloat16 (nearest even) before the product; c stays fp32.
struct GemmArgs {
  std::int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;
  std::int64_t lda = 0;
  bool trans_a = false;
  const float* b = nullptr;
  std::int64_t ldb = 0;
  bool trans_b = false;
  float* c = nullptr;
  std::int64_t ldc = 0;
  bool accumulate = false;
  const float* bias = nullptr;
  bool bf16_operands = false;
};

}  // namespace longspan::model
