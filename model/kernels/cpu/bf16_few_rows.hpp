/// Products of a few rows with a matrix of bfloat16 numbers: what generation does with every
/// weight. Reading the matrix is nearly all of the work, so it is read once, row by row, and
/// nothing is packed.
#pragma once

#include <cstdint>

#include "model/kernels/gemm.hpp"

namespace longspan::model::cpu {

/// Up to so many rows this is faster than the product by tiles, which brings b into its layout
/// first.
constexpr std::int64_t kFewestRows = 4;

/// The product of gemm.hpp for m <= kFewestRows, a not and b transposed, with a: [m, k] the rounded
/// numbers as fp32 and b as in args.b_bf16. Each element of c is summed in an order that depends on
/// k alone. Runs on omp_get_max_threads() threads.
void gemm_bf16_few_rows(const GemmArgs& args, const float* a);

}  // namespace longspan::model::cpu
