#include <vector>

#include "model/kernels/cpu/kernels_cpu.hpp"
#include "model/kernels/cpu/parallel_ranges.hpp"
#include "model/kernels/cpu/row_blocks.hpp"
#include "parallel/device.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels/cpu/reductions.cpp"
#include "hwy/foreach_target.h"
//
#include "model/kernels/cpu/vector_math-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace longspan::model::cpu::HWY_NAMESPACE {
namespace {
using namespace vm;
}  // namespace

void add_range(const float* x, float* y, std::int64_t begin, std::int64_t end) {
  for_vectors(begin, end, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
    part.store(hn::Add(part.load(y + i), part.load(x + i)), y + i);
  });
}

/// sums[c] = the sum of x[row][c] over `rows` rows; four rows at a time, as `sums` passes through
/// the cache for each.
void sum_rows(const float* x, std::int64_t rows, std::int64_t cols, float* sums) {
  std::int64_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    const float* x0 = x + row * cols;
    for_vectors(0, cols, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
      const float* p = x0 + i;
      const Vec four = hn::Add(hn::Add(part.load(p), part.load(p + cols)),
                               hn::Add(part.load(p + 2 * cols), part.load(p + 3 * cols)));
      part.store(row == 0 ? four : hn::Add(part.load(sums + i), four), sums + i);
    });
  }
  for (; row < rows; ++row) {
    const float* x0 = x + row * cols;
    for_vectors(0, cols, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
      const Vec one = part.load(x0 + i);
      part.store(row == 0 ? one : hn::Add(part.load(sums + i), one), sums + i);
    });
  }
}

/// Columns [begin, end) of y += the sum over blocks, in ascending order; the first block holds the
/// running sum.
void add_partials_range(std::int64_t blocks, std::int64_t cols, float* partials, float* y,
                        std::int64_t begin, std::int64_t end) {
  for (std::int64_t block = 1; block < blocks; ++block)
    add_range(partials + block * cols, partials, begin, end);
  add_range(partials, y, begin, end);
}

double sum_of_squares_block(const float* x, std::int64_t count) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> df;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  const auto load = [&](std::int64_t i)
                        LONGSPAN_INLINED { return hn::PromoteTo(d, hn::LoadU(df, x + i)); };
  std::int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    const auto x0 = load(i), x1 = load(i + lanes), x2 = load(i + 2 * lanes),
               x3 = load(i + 3 * lanes);
    s0 = hn::MulAdd(x0, x0, s0);
    s1 = hn::MulAdd(x1, x1, s1);
    s2 = hn::MulAdd(x2, x2, s2);
    s3 = hn::MulAdd(x3, x3, s3);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  for (; i < count; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

void round_to_bf16_range(float* x, std::int64_t begin, std::int64_t end) {
  const F32 d;
  const hn::RebindToUnsigned<F32> du;
  for_vectors(begin, end, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
    const Vec v = part.load(x + i);
    const auto bits = hn::BitCast(du, v);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
    const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFu)));
    // Rounding could carry a NaN into the sign, and truncation leave nothing but an infinity's
    // exponent.
    const auto quiet = hn::Or(bits, hn::Set(du, 0x400000u));
    const auto chosen =
        hn::IfThenElse(hn::IsNaN(v), hn::BitCast(d, quiet), hn::BitCast(d, rounded));
    part.store(hn::And(chosen, hn::BitCast(d, hn::Set(du, 0xFFFF0000u))), x + i);
  });
}

}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspan::model::cpu {

HWY_EXPORT(add_range);
HWY_EXPORT(sum_rows);
HWY_EXPORT(add_partials_range);
HWY_EXPORT(sum_of_squares_block);
HWY_EXPORT(round_to_bf16_range);

void add(std::int64_t count, const float* x, float* y) {
  parallel_ranges(count, kLine, 1, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(add_range)(x, y, begin, end);
  });
}

void add_partials(std::int64_t blocks, std::int64_t cols, float* partials, float* y) {
  if (blocks == 0) return;
  parallel_ranges(cols, kLine, blocks, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(add_partials_range)(blocks, cols, partials, y, begin, end);
  });
}

void add_column_sums(std::int64_t rows, std::int64_t cols, const float* x, float* y) {
  if (rows == 0) return;
  const RowBlocks blocks(rows);
  Buffer<float> partials(cpu_device(), blocks.count, cols);
  parallel_ranges(
      blocks.count, 1, blocks.rows_each * cols, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t block = first; block < last; ++block) {
          const std::int64_t begin = blocks.begin(block);
          HWY_DYNAMIC_DISPATCH(sum_rows)
          (x + begin * cols, blocks.end(block) - begin, cols, partials.view().row(block));
        }
      });
  add_partials(blocks.count, cols, partials.data(), y);
}

double sum_of_squares(std::int64_t count, const float* x) {
  constexpr std::int64_t kBlock = 65536;
  const std::int64_t blocks = (count + kBlock - 1) / kBlock;
  std::vector<double> sums(static_cast<std::size_t>(blocks));
  parallel_ranges(blocks, 1, kBlock, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t block = first; block < last; ++block) {
      const std::int64_t begin = block * kBlock;
      sums[static_cast<std::size_t>(block)] =
          HWY_DYNAMIC_DISPATCH(sum_of_squares_block)(x + begin, std::min(kBlock, count - begin));
    }
  });
  double sum = 0;
  for (const double block : sums) sum += block;
  return sum;
}

void round_to_bf16(std::int64_t count, float* x) {
  parallel_ranges(count, kLine, 1, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(round_to_bf16_range)(x, begin, end);
  });
}

}  // namespace longspan::model::cpu
#endif  // HWY_ONCE
