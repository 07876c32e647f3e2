/// Products of bfloat16 matrices on AMX, the matrix unit of recent Xeons: several times as fast as
/// oneDNN 2.6's, which copies a transposed operand again and again. Contract:
/// model/kernels/gemm.hpp.
#pragma once

#include <cstdint>

#include "model/kernels/gemm.hpp"

namespace longspan::model::cpu {

/// The longest sum that is finished before c is touched.
constexpr std::int64_t kLongestAmxSum = 1536;
/// With fewer rows, packing the right operand is most of the work: oneDNN does less of it.
constexpr std::int64_t kFewestAmxRows = 32;

/// Both operands as bfloat16 numbers (a_bf16, b_bf16). Only where uses_amx() (instruction_set.hpp).
/// c_bf16: if not null, the result is rounded into these [m, n] words and c is not touched; then
/// nothing is accumulated, a is not transposed and k <= kLongestAmxSum. Each element of c is summed
/// in an order that depends on k (and on what is transposed) alone, however many threads there are.
/// Runs on omp_get_max_threads() threads.
void gemm_amx(const GemmArgs& args, std::uint16_t* c_bf16 = nullptr);

}  // namespace longspan::model::cpu
