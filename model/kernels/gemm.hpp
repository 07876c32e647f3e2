/// Matrix product, the operation that carries most of the FLOPs.
#pragma once

#include <cstdint>

namespace longspan::model {

/// c[M,N] = op(a)[M,K] * op(b)[K,N] + (accumulate ? c : 0) + bias[N]; fp32 accumulation, row-major.
/// trans_a: `a` is stored [K,M]; trans_b: `b` is stored [N,K] (a linear layer's weight [out,in]).
/// lda, ldb, ldc: elements between rows as stored. c must not overlap a or b. bias may be null.
/// bf16_operands: a and b are rounded to bfloat16 (nearest even) before the product; c stays fp32.
/// a_bf16, b_bf16: the bits of an operand that is rounded already (Kernels::to_bf16), laid out as a
/// or b would be; if not null they are read instead of a or b, and bf16_operands is true. The
/// result is that of rounding here: the same bits on the CPU if rows have no gaps and the product
/// is one block (kernels/cpu/gemm.cpp), else up to the order of its sums.
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
  const std::uint16_t* a_bf16 = nullptr;
  const std::uint16_t* b_bf16 = nullptr;
};

/// A product with bfloat16 operands whose result is wanted in bfloat16 only: c_bf16 [M,N] = the
/// nearest bfloat16 of c. product.c (without gaps, ldc = n; nothing is accumulated) is room,
/// undefined afterwards.
struct GemmToBf16Args {
  GemmArgs product;
  std::uint16_t* c_bf16 = nullptr;
};

/// A product with GELU behind it (its formula: pointwise.hpp). `product` writes an fp32 matrix
/// without gaps (ldc = n) and does not accumulate.
///   fp32: product.c = the product and its bias; y = gelu(product.c).
///   bf16_operands: hidden_bf16 (may be null) = the nearest bfloat16 of the product and its bias,
///   y_bf16 = that of gelu(hidden). product.c and y are room, undefined afterwards.
/// A backend may let the product's own epilogue do it all: with bf16 it then takes GELU of the
/// numbers before they are rounded, and may round the bias. The CPU's are the bits of the
/// operations one after the other.
struct GemmGeluArgs {
  GemmArgs product;
  float* y = nullptr;
  std::uint16_t* hidden_bf16 = nullptr;
  std::uint16_t* y_bf16 = nullptr;
};

/// The way back: product.c (without gaps) = (accumulate ? c : 0) + the product, the gradient of
/// gelu(hidden), then times gelu'(hidden); dbias [N] (may be null) += its column sums. hidden:
/// [M,N] without gaps.
struct GemmGeluBackwardArgs {
  GemmArgs product;
  const float* hidden = nullptr;
  float* dbias = nullptr;
};

}  // namespace longspan::model
