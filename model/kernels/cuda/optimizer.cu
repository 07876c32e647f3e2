#include <cmath>

#include "model/kernels/cuda/elementwise.cuh"
#include "model/kernels/cuda/kernels_cuda.hpp"

namespace longspan::model::cuda {
namespace {

/// Three reads and three writes of the state and one of the gradient, all in one kernel, whatever
/// the number of tensors: a rank's parameters are one array (model/parameters.hpp).
struct Adamw {
  AdamwArgs a;
  float rest1, rest2, unbias1, unbias2;

  template <int N>
  struct State {
    Pack<N> w, g, m, v;
  };
  template <int N>
  __device__ State<N> load(std::int64_t i) const {
    return {cuda::load<N>(a.weight + i), cuda::load<N>(a.gradient + i),
            cuda::load<N>(a.exp_avg + i), cuda::load<N>(a.exp_avg_sq + i)};
  }
  template <int N>
  __device__ void finish(std::int64_t i, State<N> s) const {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float g = s.g.v[j] * a.gradient_scale, w = s.w.v[j];
      const float m = fmaf(a.beta1, s.m.v[j], rest1 * g);
      const float v = fmaf(a.beta2, s.v.v[j], rest2 * (g * g));
      const float root = fmaf(sqrtf(v), unbias2, a.epsilon);
      s.m.v[j] = m;
      s.v.v[j] = v;
      s.w.v[j] = fmaf(-a.learning_rate, fmaf(a.weight_decay, w, m * unbias1 / root), w);
    }
    store<N>(s.m, a.exp_avg + i);
    store<N>(s.v, a.exp_avg_sq + i);
    store<N>(s.w, a.weight + i);
  }
};

}  // namespace

void adamw(const AdamwArgs& args, Stream& stream) {
  const Adamw operation{args, 1.0f - args.beta1, 1.0f - args.beta2,
                        static_cast<float>(1.0 / static_cast<double>(args.correction1)),
                        static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.correction2)))};
  run_flat(args.count, operation, stream,
           {args.weight, args.gradient, args.exp_avg, args.exp_avg_sq});
}

}  // namespace longspan::model::cuda
