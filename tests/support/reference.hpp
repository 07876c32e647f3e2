/// The operations of model/kernels as plain loops in double: what the tests of the kernels compare
/// with. One function for each contract, with the same arguments; results that the contract
/// overwrites are returned, accumulated ones are increments. Nothing here is clever, on purpose.
#pragma once

#include <cstdint>
#include <vector>

#include "model/kernels/loss.hpp"
#include "model/kernels/norm.hpp"
#include "model/kernels/optimizer.hpp"
#include "model/kernels/pointwise.hpp"

namespace longspan::testing_support {

using Doubles = std::vector<double>;

struct NormForward {
  Doubles y, mean, rstd;
};
NormForward norm_forward(const model::NormForwardArgs& args);
/// Row statistics are computed from x, in double, and eps: those in `args` are not read.
struct NormBackward {
  Doubles dx, dweight, dbias;
};
NormBackward norm_backward(const model::NormBackwardArgs& args, double eps);

Doubles gelu_forward(const model::GeluForwardArgs& args);
Doubles gelu_backward(const model::GeluBackwardArgs& args);
Doubles swiglu_forward(const model::SwigluForwardArgs& args);
Doubles swiglu_backward(const model::SwigluBackwardArgs& args);

/// Whether dropout keeps element (row, col): the formula of model/kernels/pointwise.hpp, word by
/// word.
bool dropout_keeps(const model::Dropout& dropout, std::int64_t row, std::int64_t col);
Doubles residual_forward(const model::ResidualForwardArgs& args);
Doubles residual_backward(const model::ResidualBackwardArgs& args);

/// All of x, [rows, row_stride], as it should be afterwards.
Doubles rotary(const model::RotaryArgs& args);
Doubles embedding_forward(const model::EmbeddingForwardArgs& args);
/// Increments of the two tables, which have `vocabulary` and `positions` rows.
struct EmbeddingBackward {
  Doubles dtable, dposition_table;
};
EmbeddingBackward embedding_backward(const model::EmbeddingBackwardArgs& args,
                                     std::int64_t vocabulary, std::int64_t positions);

/// gradient: [rows, row_stride].
struct CrossEntropy {
  Doubles losses, gradient;
};
CrossEntropy cross_entropy(const model::CrossEntropyArgs& args);

struct Adamw {
  Doubles weight, exp_avg, exp_avg_sq;
};
Adamw adamw(const model::AdamwArgs& args);

Doubles column_sums(std::int64_t rows, std::int64_t cols, const float* x);
double sum_of_squares(std::int64_t count, const float* x);

/// Normally distributed numbers times `scale`, plus `shift`; the same for the same seed.
std::vector<float> random_floats(std::int64_t count, std::uint64_t seed, float scale = 1.0f,
                                 float shift = 0.0f);

/// The largest |actual - expected| / (unit + |expected|): relative where values exceed `unit`, in
/// units of it where they are smaller. Infinite where exactly one side is NaN or infinities differ.
double largest_error(const float* actual, const Doubles& expected, double unit = 1.0);
inline double largest_error(const std::vector<float>& actual, const Doubles& expected,
                            double unit = 1.0) {
  return actual.size() == expected.size() ? largest_error(actual.data(), expected, unit) : 1e300;
}

}  // namespace longspan::testing_support
