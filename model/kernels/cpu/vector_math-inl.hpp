/// Loops over vectors with a partial last one, and the exponential, compiled once per instruction
/// set. Included by sources that use Highway's foreach_target.

// Highway's include guard, one per target.
#if defined(LONGSPAN_VECTOR_MATH_INL_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSPAN_VECTOR_MATH_INL_
#undef LONGSPAN_VECTOR_MATH_INL_
#else
#define LONGSPAN_VECTOR_MATH_INL_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"

/// Behind the parameters of a lambda: the body of a vector loop is instantiated twice, and a call
/// would spill every vector.
#ifndef LONGSPAN_INLINED
#define LONGSPAN_INLINED __attribute__((always_inline))
#endif

HWY_BEFORE_NAMESPACE();
namespace longspan::model::cpu::HWY_NAMESPACE {
namespace vm {  // a name of its own: other sources of this namespace bring their own helpers

namespace hn = hwy::HWY_NAMESPACE;
using F32 = hn::ScalableTag<float>;
using Vec = hn::Vec<F32>;

HWY_INLINE Vec set(float value) {
  return hn::Set(F32(), value);
}

/// All lanes of a vector, or its first `count`: loads fill the others with zeros, stores leave
/// memory alone.
struct Whole {
  HWY_INLINE Vec load(const float* p) const { return hn::LoadU(F32(), p); }
  HWY_INLINE void store(Vec v, float* p) const { hn::StoreU(v, F32(), p); }
  HWY_INLINE Vec only(Vec v) const { return v; }
};
struct First {
  std::size_t count;
  HWY_INLINE Vec load(const float* p) const {
    return hn::MaskedLoad(hn::FirstN(F32(), count), F32(), p);
  }
  HWY_INLINE void store(Vec v, float* p) const {
    hn::BlendedStore(v, hn::FirstN(F32(), count), F32(), p);
  }
  /// v with zeros behind `count`.
  HWY_INLINE Vec only(Vec v) const { return hn::IfThenElseZero(hn::FirstN(F32(), count), v); }
};

/// body(i, part) for vectors at i in [begin, end).
template <class Body>
HWY_INLINE void for_vectors(std::int64_t begin, std::int64_t end, const Body& body) {
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(F32()));
  std::int64_t i = begin;
  for (; i + lanes <= end; i += lanes) body(i, Whole{});
  if (i < end) body(i, First{static_cast<std::size_t>(end - i)});
}

/// The sum of term(i, part) over [0, count) lane by lane in four independent chains, then across
/// lanes. Where `part` is partial, term must give zeros in the lanes behind its count, as loads do.
template <class Term>
HWY_INLINE float sum_vectors(std::int64_t count, const Term& term) {
  const F32 d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  Vec s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  std::int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    s0 = hn::Add(s0, term(i, Whole{}));
    s1 = hn::Add(s1, term(i + lanes, Whole{}));
    s2 = hn::Add(s2, term(i + 2 * lanes, Whole{}));
    s3 = hn::Add(s3, term(i + 3 * lanes, Whole{}));
  }
  for (; i + lanes <= count; i += lanes) s0 = hn::Add(s0, term(i, Whole{}));
  if (i < count) s1 = hn::Add(s1, term(i, First{static_cast<std::size_t>(count - i)}));
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
}

/// e^x for -87.33 <= x <= 88.02 to about 1 ulp; NaN stays NaN, other x give anything. Cody-Waite
/// reduction to |r| <= ln(2)/2 and the polynomial of Cephes' expf.
HWY_INLINE Vec exp_in_range(Vec x) {
  const F32 d;
  const hn::RebindToUnsigned<F32> du;
  // 1.5 * 2^23 + 127: the sum's low bits are the exponent field of 2^n, n = x / ln(2) rounded.
  const Vec magic = set(12583039.0f);
  const Vec shifted = hn::MulAdd(x, set(1.44269504088896341f), magic);
  const Vec n = hn::Sub(shifted, magic);
  Vec r = hn::MulAdd(n, set(-0.693359375f), x);
  r = hn::MulAdd(n, set(2.12194440e-4f), r);
  Vec p = hn::MulAdd(set(1.9875691500e-4f), r, set(1.3981999507e-3f));
  p = hn::MulAdd(p, r, set(8.3334519073e-3f));
  p = hn::MulAdd(p, r, set(4.1665795894e-2f));
  p = hn::MulAdd(p, r, set(1.6666665459e-1f));
  p = hn::MulAdd(p, r, set(5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(hn::Mul(p, r), r, r), set(1.0f));
  // A product: adding n to p's exponent would be one operation less and lose NaN.
  return hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, shifted))));
}

/// e^x for x <= 0; 0 below -87.33, where the result would be subnormal; NaN stays NaN.
HWY_INLINE Vec exp_of_nonpositive(Vec x) {
  return hn::IfThenZeroElse(hn::Lt(x, set(-87.33f)), exp_in_range(x));
}

/// 1 / x for x in [1, 1e38] to about 1 ulp; NaN stays NaN.
HWY_INLINE Vec reciprocal(Vec x) {
#if HWY_TARGET == HWY_AVX3
  // A division of 16 lanes takes 16 cycles, as long as the rest of a sigmoid; 14 bits and a Newton
  // step take 4.
  const Vec guess = hn::ApproximateReciprocal(x);
  return hn::MulAdd(guess, hn::NegMulAdd(x, guess, set(1.0f)), guess);
#else
  return hn::Div(set(1.0f), x);
#endif
}

/// s = 1 / (1 + e^-x) and 1 - s = e^-x s, both without cancellation, neither below 1.6e-38. NaN may
/// give any number (that is up to Min and Max of the instruction set): what is made of s multiplies
/// it by x.
struct Sigmoid {
  Vec s, complement;
};
HWY_INLINE Sigmoid sigmoid(Vec x) {
  const Vec e = exp_in_range(hn::Max(hn::Min(hn::Neg(x), set(87.0f)), set(-87.0f)));
  const Vec s = reciprocal(hn::Add(set(1.0f), e));
  return {s, hn::Mul(e, s)};
}

}  // namespace vm
}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
