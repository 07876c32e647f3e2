/// The CPU's matrix product, by oneDNN. Contract: model/kernels/gemm.hpp. Runs on
/// omp_get_max_threads() threads and may be called from several threads at once. The same arguments
/// and thread count give the same bits.
#pragma once

#include "model/kernels/gemm.hpp"

namespace longspan::model::cpu {

/// Throws Error with the shape if oneDNN cannot compute it.
void gemm(const GemmArgs& args);
/// The bits of gemm() and convert_to_bf16() behind it. c is not touched where AMX does it.
void gemm_to_bf16(const GemmToBf16Args& args);

}  // namespace longspan::model::cpu
