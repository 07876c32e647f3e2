#include <omp.h>

#include "model/kernels/cpu/attention.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels/cpu/attention_delta.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace longspan::model::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// All heads of one query.
void delta_row(const AttentionDeltaArgs& args, std::int64_t batch, std::int64_t query) {
  const hn::ScalableTag<float> tag;
  const std::int64_t lanes = hn::Lanes(tag), size = args.head_size;
  const float* o = args.o + batch * args.o_batch + query * args.o_row;
  const float* dout = args.dout + batch * args.dout_batch + query * args.dout_row;
  float* delta = args.delta + batch * args.heads * args.queries + query;
  for (std::int64_t h = 0; h < args.heads; ++h, o += size, dout += size, delta += args.queries) {
    auto sum = hn::Zero(tag);
    std::int64_t d = 0;
    for (; d + lanes <= size; d += lanes)
      sum = hn::MulAdd(hn::LoadU(tag, o + d), hn::LoadU(tag, dout + d), sum);
    float total = hn::GetLane(hn::SumOfLanes(tag, sum));
    for (; d < size; ++d) total += o[d] * dout[d];
    *delta = total;
  }
}

}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspan::model::cpu {

HWY_EXPORT(delta_row);

void attention_delta(const AttentionDeltaArgs& args) {
#pragma omp parallel for collapse(2)
  for (std::int64_t b = 0; b < args.batch; ++b)
    for (std::int64_t i = 0; i < args.queries; ++i) HWY_DYNAMIC_DISPATCH(delta_row)(args, b, i);
}

}  // namespace longspan::model::cpu
#endif
