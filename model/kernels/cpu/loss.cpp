#include <cassert>
#include <cmath>
#include <limits>

#include "model/kernels/cpu/kernels_cpu.hpp"
#include "model/kernels/cpu/parallel_ranges.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels/cpu/loss.cpp"
#include "hwy/foreach_target.h"
//
#include "model/kernels/cpu/vector_math-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace longspan::model::cpu::HWY_NAMESPACE {
namespace {
using namespace vm;

/// NaN may or may not be found.
float maximum(const float* x, std::int64_t count) {
  const F32 d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  Vec m0 = set(-std::numeric_limits<float>::infinity()), m1 = m0;
  std::int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    m0 = hn::Max(m0, hn::LoadU(d, x + i));
    m1 = hn::Max(m1, hn::LoadU(d, x + i + lanes));
  }
  float result = hn::GetLane(hn::MaxOfLanes(d, hn::Max(m0, m1)));
  for (; i < count; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

/// log(sum) + maximum = log sum exp; the sum is relative to the maximum.
struct LogSumExp {
  float maximum;
  double sum;
};

/// One pass over memory: the maximum of a piece that stays in the L1 cache, then its sum relative
/// to the largest so far (Milakov & Gimelshein 2018, by pieces instead of by elements).
LogSumExp log_sum_exp(const float* x, std::int64_t count) {
  constexpr std::int64_t kPiece = 2048;
  LogSumExp all{-std::numeric_limits<float>::infinity(), 0.0};
  for (std::int64_t begin = 0; begin < count; begin += kPiece) {
    const std::int64_t piece = std::min(kPiece, count - begin);
    const float* p = x + begin;
    const float most = maximum(p, piece);
    if (most > all.maximum) {
      all.sum *= std::exp(static_cast<double>(all.maximum) - static_cast<double>(most));
      all.maximum = most;
    }
    // Before the first finite logit, nothing may be measured from -inf: that would make NaN of
    // -inf.
    const Vec level =
        set(all.maximum == -std::numeric_limits<float>::infinity() ? 0.0f : all.maximum);
    all.sum +=
        static_cast<double>(sum_vectors(piece, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
          return part.only(exp_of_nonpositive(hn::Sub(part.load(p + i), level)));
        }));
  }
  return all;
}

/// x = scale / sum * exp(x - maximum), less `scale` at the target if it is one of these.
void gradient_row(const CrossEntropyArgs& a, float* x, std::int64_t target, LogSumExp all) {
  const double distance = target < a.vocabulary
                              ? static_cast<double>(x[target]) - static_cast<double>(all.maximum)
                              : 0.0;  // <= 0
  const Vec level = set(all.maximum),
            scale = set(static_cast<float>(static_cast<double>(a.gradient_scale) / all.sum));
  for_vectors(0, a.vocabulary, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
    part.store(hn::Mul(exp_of_nonpositive(hn::Sub(part.load(x + i), level)), scale), x + i);
  });
  if (target < a.vocabulary)
    x[target] = static_cast<float>(a.gradient_scale * (std::exp(distance) / all.sum - 1.0));
  std::fill(x + a.vocabulary, x + a.row_stride, 0.0f);
}

}  // namespace

void cross_entropy_part_rows(const CrossEntropyArgs& a, std::int64_t first, std::int64_t last) {
  for (std::int64_t row = first; row < last; ++row) {
    float* x = a.logits + row * a.row_stride;
    float* s = a.statistics + 3 * row;
    const std::int64_t target = a.targets[row];
    assert(target <= a.vocabulary);
    if (a.pass == CrossEntropyPass::kGradient) {
      if (target < 0)
        std::fill(x, x + a.row_stride, 0.0f);
      else
        gradient_row(a, x, target, {s[0], static_cast<double>(s[1])});
      continue;
    }
    s[0] = s[1] = s[2] = 0.0f;
    if (target < 0) continue;
    const LogSumExp part = log_sum_exp(x, a.vocabulary);
    s[0] = part.maximum, s[1] = static_cast<float>(part.sum);
    if (target < a.vocabulary) s[2] = x[target];
  }
}

void cross_entropy_rows(const CrossEntropyArgs& a, std::int64_t first, std::int64_t last) {
  for (std::int64_t row = first; row < last; ++row) {
    float* x = a.logits + row * a.row_stride;
    const std::int64_t target = a.targets[row];
    if (target < 0) {
      a.losses[row] = 0.0f;
      if (a.backward) std::fill(x, x + a.row_stride, 0.0f);
      continue;
    }
    assert(target < a.vocabulary);
    const LogSumExp all = log_sum_exp(x, a.vocabulary);
    const double distance =
        static_cast<double>(x[target]) - static_cast<double>(all.maximum);  // <= 0
    a.losses[row] = static_cast<float>(std::log(all.sum) - distance);
    if (a.backward) gradient_row(a, x, target, all);
  }
}

}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspan::model::cpu {

HWY_EXPORT(cross_entropy_rows);
HWY_EXPORT(cross_entropy_part_rows);

void cross_entropy(const CrossEntropyArgs& args) {
  parallel_ranges(args.rows, 1, 4 * args.row_stride, [&](std::int64_t first, std::int64_t last) {
    if (args.pass == CrossEntropyPass::kWhole)
      HWY_DYNAMIC_DISPATCH(cross_entropy_rows)(args, first, last);
    else
      HWY_DYNAMIC_DISPATCH(cross_entropy_part_rows)(args, first, last);
  });
}

}  // namespace longspan::model::cpu
#endif  // HWY_ONCE
