/// Sums over rows whose order does not depend on the threads: rows are cut into blocks by their
/// number alone, every block has partial sums of its own, and the partial sums are added in
/// ascending order.
#pragma once

#include <algorithm>
#include <cstdint>

namespace longspan::model::cpu {

/// At most 128 blocks bound the scratch memory (and the threads that find work); at least 16 rows
/// each keep the second step cheap.
struct RowBlocks {
  std::int64_t rows, rows_each, count;

  explicit RowBlocks(std::int64_t total)
      : rows(total),
        rows_each(std::max<std::int64_t>(16, (total + 127) / 128)),
        count((total + rows_each - 1) / rows_each) {}
  std::int64_t begin(std::int64_t block) const { return block * rows_each; }
  std::int64_t end(std::int64_t block) const { return std::min(rows, (block + 1) * rows_each); }
};

/// y[c] += partials[0][c] + partials[1][c] + ...; partials: [blocks, cols], overwritten.
void add_partials(std::int64_t blocks, std::int64_t cols, float* partials, float* y);

}  // namespace longspan::model::cpu
