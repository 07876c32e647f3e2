#include "model/kernels/cpu/bf16_operand.hpp"

#include "model/kernels/cpu/parallel_ranges.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels/cpu/bf16_operand.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace longspan::model::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// The upper half of each word, rounded to nearest even, still in the upper half. A NaN becomes
/// quiet: rounding could carry its last fraction bit away and leave an infinity.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V rounded_words(D words, V x) {
  const hn::Rebind<float, D> floats;
  const V odd = hn::And(hn::ShiftRight<16>(x), hn::Set(words, 1));
  const V rounded = hn::Add(x, hn::Add(odd, hn::Set(words, 0x7FFF)));
  const V quiet = hn::Or(x, hn::Set(words, 0x400000));
  const auto is_nan = hn::RebindMask(words, hn::IsNaN(hn::BitCast(floats, x)));
  return hn::And(hn::IfThenElse(is_nan, quiet, rounded), hn::Set(words, 0xFFFF0000u));
}

void convert_row(const float* from, std::int64_t count, std::uint16_t* to) {
  const hn::ScalableTag<std::uint32_t> words;
  const hn::Rebind<std::uint16_t, decltype(words)> halves;
  const auto* bits = reinterpret_cast<const std::uint32_t*>(from);
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(words));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(hn::TruncateTo(halves,
                              hn::ShiftRight<16>(rounded_words(words, hn::LoadU(words, bits + i)))),
               halves, to + i);
  const hn::CappedTag<std::uint32_t, 1> word;
  for (; i < count; ++i)
    to[i] = static_cast<std::uint16_t>(
        hn::GetLane(rounded_words(word, hn::LoadU(word, bits + i))) >> 16);
}

void round_row(const float* from, std::int64_t count, float* to) {
  const hn::ScalableTag<std::uint32_t> words;
  const auto* bits = reinterpret_cast<const std::uint32_t*>(from);
  auto* out = reinterpret_cast<std::uint32_t*>(to);
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(words));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(rounded_words(words, hn::LoadU(words, bits + i)), words, out + i);
  const hn::CappedTag<std::uint32_t, 1> word;
  for (; i < count; ++i) hn::StoreU(rounded_words(word, hn::LoadU(word, bits + i)), word, out + i);
}

void widen_row(const std::uint16_t* from, std::int64_t count, float* to) {
  const hn::ScalableTag<std::uint32_t> words;
  const hn::Rebind<std::uint16_t, decltype(words)> halves;
  auto* out = reinterpret_cast<std::uint32_t*>(to);
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(words));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(hn::ShiftLeft<16>(hn::PromoteTo(words, hn::LoadU(halves, from + i))), words,
               out + i);
  for (; i < count; ++i) out[i] = std::uint32_t{from[i]} << 16;
}

}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspan::model::cpu {
namespace {

HWY_EXPORT(convert_row);
HWY_EXPORT(round_row);
HWY_EXPORT(widen_row);

/// row(from, count, to) for every row; rows without gaps are one long row, which threads share.
template <class Row, class From, class To>
void for_rows(Row row, const From* from, std::int64_t rows, std::int64_t cols, std::int64_t stride,
              To* to) {
  if (stride == cols)
    parallel_ranges(rows * cols, 2 * kLine, 1, [&](std::int64_t begin, std::int64_t end) {
      row(from + begin, end - begin, to + begin);
    });
  else
    parallel_ranges(rows, 1, cols, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t r = first; r < last; ++r) row(from + r * stride, cols, to + r * cols);
    });
}

}  // namespace

void convert_to_bf16(const float* from, std::int64_t rows, std::int64_t cols, std::int64_t stride,
                     std::uint16_t* to) {
  for_rows(HWY_DYNAMIC_DISPATCH(convert_row), from, rows, cols, stride, to);
}

void round_to_bf16(const float* from, std::int64_t rows, std::int64_t cols, std::int64_t stride,
                   float* to) {
  for_rows(HWY_DYNAMIC_DISPATCH(round_row), from, rows, cols, stride, to);
}

void convert_from_bf16(const std::uint16_t* from, std::int64_t rows, std::int64_t cols,
                       std::int64_t stride, float* to) {
  for_rows(HWY_DYNAMIC_DISPATCH(widen_row), from, rows, cols, stride, to);
}

}  // namespace longspan::model::cpu
#endif
