/// The CPU's operations other than attention and matrix products, as free functions: vectorised for
/// the instruction set found at run time, on omp_get_max_threads() OpenMP threads. Contracts are in
/// model/kernels/*.hpp; only what the CPU promises beyond them stands here. None communicates. Read
/// next: norm.cpp.
#pragma once

#include <cstdint>

#include "model/kernels/loss.hpp"
#include "model/kernels/norm.hpp"
#include "model/kernels/optimizer.hpp"
#include "model/kernels/pointwise.hpp"

namespace longspan::model::cpu {

/// The variance is taken in two passes over the (cached) row: no cancellation for rows far from
/// zero.
void norm_forward(const NormForwardArgs& args);
/// A few rows at a time: the second step finds them in the cache.
void residual_norm_forward(const ResidualNormArgs& args);
/// dx may be x, too. Sums over rows depend on `rows` alone, not on the thread count
/// (row_blocks.hpp).
void norm_backward(const NormBackwardArgs& args);

void gelu_forward(const GeluForwardArgs& args);
void gelu_backward(const GeluBackwardArgs& args);
void swiglu_forward(const SwigluForwardArgs& args);
void swiglu_backward(const SwigluBackwardArgs& args);
/// These two touch no room: what is widened stays in the first-level cache.
void swiglu_bf16_forward(const SwigluBf16ForwardArgs& args);
void swiglu_bf16_backward(const SwigluBf16BackwardArgs& args);
void rotary(const RotaryArgs& args);
void embedding_forward(const EmbeddingForwardArgs& args);
void embedding_backward(const EmbeddingBackwardArgs& args);

/// A position below zero (padding) enters the random number's counter as its 32-bit two's
/// complement. A dropped element is an exact zero, also where the input is NaN. probability = 1
/// drops everything.
void residual_forward(const ResidualForwardArgs& args);
/// Rows [first, last) on the calling thread.
void residual_forward_rows(const ResidualForwardArgs& args, std::int64_t first, std::int64_t last);
void residual_backward(const ResidualBackwardArgs& args);

/// NaN or +inf among a row's logits, or nothing but -inf: the row's loss and gradients are NaN.
void cross_entropy(const CrossEntropyArgs& args);

void adamw(const AdamwArgs& args);

void add(std::int64_t count, const float* x, float* y);
/// The sums depend on `rows` alone, not on the thread count (row_blocks.hpp).
void add_column_sums(std::int64_t rows, std::int64_t cols, const float* x, float* y);
/// Blocks of 65536 elements, each summed in double, are added in ascending order.
double sum_of_squares(std::int64_t count, const float* x);
/// NaN stays NaN, and what is above bfloat16's largest number becomes infinite.
void round_to_bf16(std::int64_t count, float* x);

}  // namespace longspan::model::cpu
