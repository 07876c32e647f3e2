#include <algorithm>
#include <cmath>
#include <limits>

#include "model/kernels/cuda/device_code.cuh"
#include "model/kernels/cuda/kernels_cuda.hpp"

namespace longspan::model::cuda {
namespace {

constexpr int kLoads = 4;  ///< packs a thread waits for at once

/// Of one thread's, or of all logits of a row: their maximum, and the sum of exp(logit - maximum).
struct Statistics {
  float maximum;
  float sum;
};

/// exp(x - level), where nothing may be measured from -inf: that would make NaN of -inf.
__device__ inline float relative_exp(float x, float level) {
  return expf(x - (level == -INFINITY ? 0.0f : level));
}

/// Takes N more logits into the online softmax (Milakov & Gimelshein 2018).
template <int N>
__device__ inline void include(Statistics& s, const Pack<N>& x) {
  float most = s.maximum;
#pragma unroll
  for (int j = 0; j < N; ++j) most = x.v[j] > most ? x.v[j] : most;
  if (most > s.maximum) {
    s.sum *= expf(s.maximum - most);
    s.maximum = most;
  }
#pragma unroll
  for (int j = 0; j < N; ++j) s.sum += relative_exp(x.v[j], s.maximum);
}

/// The statistics of the team's row (device_code.cuh: team_sum), the same bits in every thread.
__device__ inline Statistics combine(Statistics mine, float* maxima, float* sums) {
  float most = mine.maximum;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, distance));
  if (blockDim.x > 32) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    if (lane == 0) maxima[warp] = most;
    __syncthreads();
    most = lane < warps ? maxima[lane] : -INFINITY;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, distance));
  }
  // A thread without finite logits has the sum 0, or NaN, which has to stay.
  float scaled[1] = {mine.maximum == most ? mine.sum : mine.sum * relative_exp(mine.maximum, most)};
  team_sum(scaled, sums);
  return {most, scaled[0]};
}

/// kPass as in CrossEntropyArgs; backward only matters to kWhole. A row has a team of threads: a
/// warp, or a block. The first `cached` packs of a row wait in shared memory for the gradient, the
/// rest is read again. With padding columns packs reach behind the vocabulary.
template <int N, CrossEntropyPass kPass>
__global__ void __launch_bounds__(1024)
    cross_entropy_kernel(CrossEntropyArgs a, std::int64_t cached) {
  __shared__ float maxima[32], sums[32];
  Pack<N>* const cache =
      longspan::cuda::dynamic_shared<Pack<N>>() + static_cast<std::int64_t>(threadIdx.y) * cached;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= a.rows) return;  // whole warps: larger teams have a block of their own
  float* const x = a.logits + row * a.row_stride;
  const std::int64_t target = a.targets[row];
  const bool backward =
      kPass == CrossEntropyPass::kGradient || (kPass == CrossEntropyPass::kWhole && a.backward);
  const std::int64_t all = a.row_stride / N;  // packs of the whole row
  const std::int64_t packs = (a.vocabulary + N - 1) / N;
  if (target < 0) {
    if (backward)
      for (std::int64_t p = threadIdx.x; p < all; p += blockDim.x)
        store<N>(zero_pack<N>(), x + p * N);
    if (threadIdx.x == 0) {
      if (kPass == CrossEntropyPass::kWhole) a.losses[row] = 0.0f;
      if (kPass == CrossEntropyPass::kStatistics)
        a.statistics[3 * row] = a.statistics[3 * row + 1] = a.statistics[3 * row + 2] = 0.0f;
    }
    return;
  }
  Statistics s{-INFINITY, 0.0f};
  if constexpr (kPass == CrossEntropyPass::kGradient) {
    s = {a.statistics[3 * row], a.statistics[3 * row + 1]};
  } else {
    // Before it is overwritten: the threads meet in between.
    const float target_logit = threadIdx.x == 0 && target < a.vocabulary ? x[target] : 0.0f;
    for (std::int64_t p = threadIdx.x; p < packs; p += kLoads * blockDim.x) {
      Pack<N> loaded[kLoads] = {};
#pragma unroll
      for (int u = 0; u < kLoads; ++u)
        if (p + u * blockDim.x < packs) loaded[u] = load<N>(x + (p + u * blockDim.x) * N);
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        const std::int64_t at = p + u * blockDim.x;
        if (at >= packs) continue;
#pragma unroll
        for (int j = 0; j < N; ++j)
          if (at * N + j >= a.vocabulary) loaded[u].v[j] = -INFINITY;
        if (at < cached) cache[at] = loaded[u];
        include(s, loaded[u]);
      }
    }
    s = combine(s, maxima, sums);
    __syncwarp();
    if (threadIdx.x == 0) {
      // The loss in double: it is a small difference of large numbers.
      if (kPass == CrossEntropyPass::kWhole)
        a.losses[row] = static_cast<float>(
            log(static_cast<double>(s.sum)) -
            (static_cast<double>(target_logit) - static_cast<double>(s.maximum)));
      if (kPass == CrossEntropyPass::kStatistics) {
        a.statistics[3 * row] = s.maximum;
        a.statistics[3 * row + 1] = s.sum;
        a.statistics[3 * row + 2] = target_logit;
      }
    }
  }
  if (!backward) return;
  const float scale = a.gradient_scale / s.sum;
#pragma unroll 2
  for (std::int64_t p = threadIdx.x; p < all; p += blockDim.x) {
    Pack<N> pack = p >= packs ? zero_pack<N>() : p < cached ? cache[p] : load<N>(x + p * N);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const std::int64_t at = p * N + j;
      if (at >= a.vocabulary)
        pack.v[j] = 0.0f;
      else if (at == target)  // in double: probabilities near 1 keep their digits
        pack.v[j] = static_cast<float>(
            static_cast<double>(a.gradient_scale) *
            (exp(static_cast<double>(pack.v[j]) - static_cast<double>(s.maximum)) /
                 static_cast<double>(s.sum) -
             1.0));
      else
        pack.v[j] = expf(pack.v[j] - s.maximum) * scale;
    }
    store<N>(pack, x + p * N);
  }
}

template <int N, CrossEntropyPass kPass>
void run(const CrossEntropyArgs& a, Stream& stream) {
  // About 32 logits a thread, as far as a block goes.
  const unsigned threads = a.row_stride <= 1024 ? 32 : a.row_stride <= 8192 ? 256 : 1024;
  const dim3 block(threads, threads == 32 ? 8 : 1);
  std::int64_t cached = 0, bytes = 0;
  if (kPass == CrossEntropyPass::kWhole && a.backward) {
    constexpr std::int64_t kPackBytes = sizeof(Pack<N>);
    const std::int64_t room = largest_shared_memory() - 1024;
    cached = std::min((a.vocabulary + N - 1) / N, room / (kPackBytes * block.y));
    bytes = cached * kPackBytes * block.y;
  }
  launch(cross_entropy_kernel<N, kPass>, blocks_for(a.rows, block.y), block,
         static_cast<std::size_t>(bytes), stream, a, cached);
}

template <int N>
void run_pass(const CrossEntropyArgs& args, Stream& stream) {
  switch (args.pass) {
    case CrossEntropyPass::kWhole:
      return run<N, CrossEntropyPass::kWhole>(args, stream);
    case CrossEntropyPass::kStatistics:
      return run<N, CrossEntropyPass::kStatistics>(args, stream);
    case CrossEntropyPass::kGradient:
      return run<N, CrossEntropyPass::kGradient>(args, stream);
  }
}

}  // namespace

void cross_entropy(const CrossEntropyArgs& args, Stream& stream) {
  if (args.rows <= 0) return;
  if (args.row_stride % 4 == 0 && aligned16(args.logits))
    run_pass<4>(args, stream);
  else
    run_pass<1>(args, stream);
}

}  // namespace longspan::model::cuda
