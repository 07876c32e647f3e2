/// Rounding matrices to bfloat16 (nearest even; NaN stays NaN), the operands of a mixed-precision
/// product.
#pragma once

#include <cstdint>

namespace longspan::model::cpu {

/// to[r * cols + c] = bits of bf16(from[r * stride + c]). Runs on omp_get_max_threads() threads.
void convert_to_bf16(const float* from, std::int64_t rows, std::int64_t cols, std::int64_t stride,
                     std::uint16_t* to);

/// The same values stored as fp32, for CPUs without a product of bfloat16 numbers.
void round_to_bf16(const float* from, std::int64_t rows, std::int64_t cols, std::int64_t stride,
                   float* to);

/// to[r * cols + c] = the number whose bits are from[r * stride + c]; exact.
void convert_from_bf16(const std::uint16_t* from, std::int64_t rows, std::int64_t cols,
                       std::int64_t stride, float* to);

}  // namespace longspan::model::cpu
