/// Products of bfloat16 matrices on AMX, the matrix unit of recent Xeons: several times as fast as
/// oneDNN 2.6's, which copies a transposed operand again and again. Contract:
/// model/kernels/gemm.hpp.
#pragma once

#include <algorithm>
#include <cstdint>

#include "model/kernels/gemm.hpp"

namespace longspan::model::cpu {

/// The longest sum that is finished before c is touched.
constexpr std::int64_t kLongestAmxSum = 1536;

/// How a product is cut. The right operand is packed a block at a time, and so are, by every
/// thread, the rows of the left one: where that has to be turned or is not a multiple of full
/// tiles.
struct AmxBlocks {
  std::int64_t terms, columns, rows;
  bool packs_left;

  AmxBlocks(std::int64_t m, std::int64_t n, std::int64_t k, bool trans_a, std::int64_t threads) {
    // A turned operand in shorter sums, so that its packed rows stay near: 1536 terms take a fifth
    // longer. The right operand in 1 MiB of the second-level cache (2 MiB) while all rows pass by:
    // with 1.5 MiB products of long rows lose a quarter. 128 packed rows are a tenth faster
    // than 64.
    constexpr std::int64_t kLongestTurned = 512, kRightNumbers = 1 << 19, kRows = 128;
    terms = even_length(k, trans_a ? kLongestTurned : kLongestAmxSum);
    columns = even_length(n, std::max(kUnit, kRightNumbers / terms / kUnit * kUnit));
    rows = std::clamp(even_length(m, (m + 2 * threads - 1) / (2 * threads)), kUnit, kRows);
    packs_left = trans_a || k % kUnit != 0 || m % kUnit != 0;
  }

  std::int64_t right_numbers() const { return terms * columns; }
  /// No power of two between packed rows.
  std::int64_t left_row() const { return terms + kUnit; }
  std::int64_t left_numbers() const { return packs_left ? rows * left_row() : 0; }  ///< a thread

 private:
  static constexpr std::int64_t kUnit = 32;
  /// Blocks of at most `most` (a multiple of kUnit, or it is rounded up to one), equal but the
  /// last.
  static std::int64_t even_length(std::int64_t total, std::int64_t most) {
    const std::int64_t blocks = (total + most - 1) / most;
    return ((total + blocks - 1) / blocks + kUnit - 1) / kUnit * kUnit;
  }
};

/// With fewer rows, packing the right operand is most of the work: oneDNN does less of it.
constexpr std::int64_t kFewestAmxRows = 32;

/// Both operands as bfloat16 numbers (a_bf16, b_bf16). Only where uses_amx() (instruction_set.hpp).
/// c_bf16: if not null, the result is rounded into these [m, n] words and c is not touched; then
/// nothing is accumulated, a is not transposed and k <= kLongestAmxSum. Each element of c is summed
/// in an order that depends on k (and on what is transposed) alone, however many threads there are.
/// Runs on omp_get_max_threads() threads.
void gemm_amx(const GemmArgs& args, std::uint16_t* c_bf16 = nullptr);

}  // namespace longspan::model::cpu
