/// A CUDA device's operations other than attention and matrix products, as free functions that
/// submit to the stream and return. Contracts are in model/kernels/*.hpp: every pointer is memory
/// of `device`; only what CUDA promises beyond them stands here. None communicates. No atomics:
/// sums are taken in an order that the shapes fix, and a different GPU gives the same bits. Scratch
/// comes from `device` and goes back before the kernels that use it have run, which is safe because
/// blocks are handed out again in stream order. Read next: elementwise.cuh, rows.cuh, columns.cuh.
#pragma once

#include <cstdint>

#include "model/kernels/loss.hpp"
#include "model/kernels/norm.hpp"
#include "model/kernels/optimizer.hpp"
#include "model/kernels/pointwise.hpp"
#include "parallel/device.hpp"

namespace longspan::model::cuda {

/// The variance is taken in two passes over the row, which up to a width of 16384 stays in
/// registers between them.
void norm_forward(const NormForwardArgs& args, Stream& stream);
/// The sum is written once and, up to the same width, not read again.
void residual_norm_forward(const ResidualNormArgs& args, Stream& stream);
/// dx may be x, too. Up to a width of 8192 dy and x are read once, above twice.
void norm_backward(const NormBackwardArgs& args, Device& device, Stream& stream);

void gelu_forward(const GeluForwardArgs& args, Stream& stream);
/// x and y are left as they are.
void gelu_bf16_forward(const GeluBf16ForwardArgs& args, Stream& stream);
void gelu_backward(const GeluBackwardArgs& args, Stream& stream);
void swiglu_forward(const SwigluForwardArgs& args, Stream& stream);
void swiglu_backward(const SwigluBackwardArgs& args, Stream& stream);
void rotary(const RotaryArgs& args, Stream& stream);

void embedding_forward(const EmbeddingForwardArgs& args, Stream& stream);
/// Sorts the rows by id, then one warp adds those of one id: the CPU's additions in the CPU's
/// order.
void embedding_backward(const EmbeddingBackwardArgs& args, Device& device, Stream& stream);

/// Masks are the CPU's, bit for bit. A dropped element is an exact zero, also where the input is
/// NaN.
void residual_forward(const ResidualForwardArgs& args, Stream& stream);
void residual_backward(const ResidualBackwardArgs& args, Stream& stream);

/// Logits are read once and, with backward, written once where a row (or the part of it that fits)
/// waits in shared memory. NaN or +inf among a row's logits, or nothing but -inf: the row's loss
/// and gradients are NaN.
void cross_entropy(const CrossEntropyArgs& args, Stream& stream);

void adamw(const AdamwArgs& args, Stream& stream);

void add(std::int64_t count, const float* x, float* y, Stream& stream);
void add_rows(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row, float* y,
              std::int64_t y_row, Stream& stream);
void add_column_sums(std::int64_t rows, std::int64_t cols, const float* x, float* y, Device& device,
                     Stream& stream);
double sum_of_squares(std::int64_t count, const float* x, Device& device, Stream& stream);

/// The CPU's bits, NaN included.
void round_to_bf16(std::int64_t count, float* x, Stream& stream);
/// y's rows are `y_row` elements apart; what lies between them is left alone.
void to_bf16(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row,
             std::uint16_t* y, std::int64_t y_row, Stream& stream);
void from_bf16(std::int64_t count, const std::uint16_t* x, float* y, Stream& stream);

/// c[rows, cols] = (accumulate ? c : 0) + bias[cols] (null: 0); rows of c are `ldc` apart.
void start_from_bias(std::int64_t rows, std::int64_t cols, const float* bias, bool accumulate,
                     float* c, std::int64_t ldc, Stream& stream);

}  // namespace longspan::model::cuda
