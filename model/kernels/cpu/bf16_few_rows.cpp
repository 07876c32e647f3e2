#include "model/kernels/cpu/bf16_few_rows.hpp"

#include "model/kernels/cpu/parallel_ranges.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels/cpu/bf16_few_rows.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace longspan::model::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Words = hn::ScalableTag<std::uint32_t>;
using Floats = hn::Rebind<float, Words>;

HWY_INLINE float widened(std::uint16_t bits) {
  const std::uint32_t word = std::uint32_t{bits} << 16;
  float value;
  __builtin_memcpy(&value, &word, sizeof(value));
  return value;
}

/// kCols columns of c (rows of b) from `j` on: as many chains of sums side by side as hide their
/// latency.
template <int kRows, int kCols>
HWY_INLINE void columns(const GemmArgs& args, const float* a, std::int64_t j) {
  const Words words;
  const Floats floats;
  const hn::Rebind<std::uint16_t, Words> halves;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(words));
  const std::uint16_t* b = args.b_bf16 + j * args.ldb;
  hn::Vec<Floats> sums[kRows][kCols];
  for (auto& row : sums)
    for (auto& sum : row) sum = hn::Zero(floats);
  std::int64_t p = 0;
  for (; p + lanes <= args.k; p += lanes) {
    hn::Vec<Floats> x[kRows];
    for (int i = 0; i < kRows; ++i) x[i] = hn::LoadU(floats, a + i * args.k + p);
    for (int c = 0; c < kCols; ++c) {
      const auto bits = hn::PromoteTo(words, hn::LoadU(halves, b + c * args.ldb + p));
      const auto weight = hn::BitCast(floats, hn::ShiftLeft<16>(bits));
      for (int i = 0; i < kRows; ++i) sums[i][c] = hn::MulAdd(x[i], weight, sums[i][c]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int c = 0; c < kCols; ++c) {
      float sum = hn::GetLane(hn::SumOfLanes(floats, sums[i][c]));
      for (std::int64_t q = p; q < args.k; ++q)
        sum += a[i * args.k + q] * widened(b[c * args.ldb + q]);
      float* to = args.c + i * args.ldc + j + c;
      const float start = (args.accumulate ? *to : 0.0f) + (args.bias ? args.bias[j + c] : 0.0f);
      *to = start + sum;
    }
}

template <int kRows>
void range(const GemmArgs& args, const float* a, std::int64_t begin, std::int64_t end) {
  std::int64_t j = begin;
  for (; j + 4 <= end; j += 4) columns<kRows, 4>(args, a, j);
  for (; j < end; ++j) columns<kRows, 1>(args, a, j);
}

void few_rows(const GemmArgs& args, const float* a, std::int64_t begin, std::int64_t end) {
  if (args.m == 1) return range<1>(args, a, begin, end);
  if (args.m == 2) return range<2>(args, a, begin, end);
  if (args.m == 3) return range<3>(args, a, begin, end);
  range<4>(args, a, begin, end);
}

}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspan::model::cpu {

HWY_EXPORT(few_rows);

void gemm_bf16_few_rows(const GemmArgs& args, const float* a) {
  parallel_ranges(args.n, kLine, args.k, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(few_rows)(args, a, begin, end);
  });
}

}  // namespace longspan::model::cpu
#endif
