#include "model/kernels/cpu/bf16_operand.hpp"

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

}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspan::model::cpu {
namespace {

HWY_EXPORT(convert_row);
HWY_EXPORT(round_row);

/// Below this many elements starting threads costs more than they save.
constexpr std::int64_t kParallelElements = 1 << 15;

}  // namespace

void convert_to_bf16(const float* from, std::int64_t rows, std::int64_t cols, std::int64_t stride,
                     std::uint16_t* to) {
  const auto convert = HWY_DYNAMIC_DISPATCH(convert_row);
#pragma omp parallel for schedule(static) if (rows * cols >= kParallelElements)
  for (std::int64_t r = 0; r < rows; ++r) convert(from + r * stride, cols, to + r * cols);
}

void round_to_bf16(const float* from, std::int64_t rows, std::int64_t cols, std::int64_t stride,
                   float* to) {
  const auto round = HWY_DYNAMIC_DISPATCH(round_row);
#pragma omp parallel for schedule(static) if (rows * cols >= kParallelElements)
  for (std::int64_t r = 0; r < rows; ++r) round(from + r * stride, cols, to + r * cols);
}

}  // namespace longspan::model::cpu
#endif
