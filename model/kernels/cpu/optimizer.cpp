#include <cmath>

#include "model/kernels/cpu/kernels_cpu.hpp"
#include "model/kernels/cpu/parallel_ranges.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels/cpu/optimizer.cpp"
#include "hwy/foreach_target.h"
//
#include "model/kernels/cpu/vector_math-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace longspan::model::cpu::HWY_NAMESPACE {
namespace {
using namespace vm;
}  // namespace

void adamw_range(const AdamwArgs& a, std::int64_t begin, std::int64_t end) {
  const Vec gradient_scale = set(a.gradient_scale), epsilon = set(a.epsilon),
            decay = set(a.weight_decay);
  const Vec beta1 = set(a.beta1), rest1 = set(1.0f - a.beta1), beta2 = set(a.beta2),
            rest2 = set(1.0f - a.beta2);
  const Vec unbias1 = set(static_cast<float>(1.0 / static_cast<double>(a.correction1)));
  const Vec unbias2 = set(static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.correction2))));
  const Vec rate = set(a.learning_rate);
  for_vectors(begin, end, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
    const Vec g = hn::Mul(part.load(a.gradient + i), gradient_scale);
    const Vec m = hn::MulAdd(beta1, part.load(a.exp_avg + i), hn::Mul(rest1, g));
    const Vec v = hn::MulAdd(beta2, part.load(a.exp_avg_sq + i), hn::Mul(rest2, hn::Mul(g, g)));
    const Vec w = part.load(a.weight + i);
    const Vec root = hn::MulAdd(hn::Sqrt(v), unbias2, epsilon);
    const Vec update = hn::MulAdd(decay, w, hn::Div(hn::Mul(m, unbias1), root));
    part.store(m, a.exp_avg + i);
    part.store(v, a.exp_avg_sq + i);
    part.store(hn::NegMulAdd(rate, update, w), a.weight + i);
  });
}

}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspan::model::cpu {

HWY_EXPORT(adamw_range);

void adamw(const AdamwArgs& args) {
  parallel_ranges(args.count, kLine, 4, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(adamw_range)(args, begin, end);
  });
}

}  // namespace longspan::model::cpu
#endif  // HWY_ONCE
