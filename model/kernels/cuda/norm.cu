#include <cmath>
#include <limits>
#include <type_traits>

#include "model/kernels/cuda/columns.cuh"
#include "model/kernels/cuda/device_code.cuh"
#include "model/kernels/cuda/kernels_cuda.hpp"
#include "model/kernels/cuda/residual.cuh"

namespace longspan::model::cuda {
namespace {

/// A row belongs to a team: a warp of a block with several rows, or a whole block. A thread of it
/// has packs threadIdx.x, threadIdx.x + blockDim.x, ... and keeps K of them in registers; K = 0:
/// any number, read anew by every pass.
template <int N, int K>
struct RowPacks {
  const float* row;
  std::int64_t width;
  Pack<N> kept[K > 0 ? K : 1] = {};

  __device__ RowPacks(const float* from, std::int64_t columns) : row(from), width(columns) {
    if constexpr (K > 0) {
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (column(k) < width) kept[k] = load<N>(row + column(k));
    }
  }
  /// The row that `sum`, an operation of residual.cuh, computes and writes. What is not kept a
  /// thread reads again from where it wrote it.
  template <class Sum>
  __device__ RowPacks(const Sum& sum, std::int64_t number, std::int64_t columns)
      : row(sum.y + number * columns), width(columns) {
    const auto place = sum.row(number);
    if constexpr (K > 0) {
      Branches<N> in[K] = {};
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (column(k) < width) in[k] = sum.template load<N>(place, column(k));
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (column(k) < width) kept[k] = sum.template finish<N>(place, column(k), in[k]);
    } else {
      for (std::int64_t at = column(0); at < width; at += static_cast<std::int64_t>(blockDim.x) * N)
        sum.template finish<N>(place, at, sum.template load<N>(place, at));
    }
  }
  static __device__ std::int64_t column(std::int64_t k) {
    return (threadIdx.x + k * static_cast<std::int64_t>(blockDim.x)) * N;
  }
  /// body(column, pack) for this thread's packs.
  template <class Body>
  __device__ void each(const Body& body) const {
    if constexpr (K > 0) {
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (column(k) < width) body(column(k), kept[k]);
    } else {
      for (std::int64_t at = column(0); at < width; at += static_cast<std::int64_t>(blockDim.x) * N)
        body(at, load<N>(row + at));
    }
  }
};

/// The rows are there already.
struct NoSum {};

template <int N, int K, class Sum>
__device__ inline RowPacks<N, K> packs_of(const NormForwardArgs& a, const Sum& sum,
                                          std::int64_t row) {
  if constexpr (std::is_same_v<Sum, NoSum>)
    return RowPacks<N, K>(a.x + row * a.width, a.width);
  else
    return RowPacks<N, K>(sum, row, a.width);
}

template <int N, int K, class Sum>
__global__ void __launch_bounds__(K == 0 ? 1024 : 512)
    norm_forward_kernel(NormForwardArgs a, Sum addition) {
  __shared__ float sums[2][32];
  __shared__ double wide_sums[32];
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= a.rows) return;  // whole warps: larger teams have a block of their own
  const RowPacks<N, K> packs = packs_of<N, K>(a, addition, row);
  const float width = static_cast<float>(a.width);
  float mean = 0.0f;
  if (!a.rms) {
    float sum[1] = {0.0f};
    packs.each([&](std::int64_t, const Pack<N>& x) {
#pragma unroll
      for (int j = 0; j < N; ++j) sum[0] += x.v[j];
    });
    team_sum(sum, sums[0]);
    mean = sum[0] / width;
  }
  float square[1] = {0.0f};
  packs.each([&](std::int64_t, const Pack<N>& x) {
#pragma unroll
    for (int j = 0; j < N; ++j) square[0] = fmaf(x.v[j] - mean, x.v[j] - mean, square[0]);
  });
  team_sum(square, sums[1]);
  float rstd = 1.0f / sqrtf(square[0] / width + a.eps);
  if (!(square[0] <= std::numeric_limits<float>::max())) {
    // fp32 squares overflow from 2e19 on; an infinite variance would turn the row into quiet zeros.
    double wide[1] = {0.0};
    packs.each([&](std::int64_t, const Pack<N>& x) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const double distance = static_cast<double>(x.v[j]) - static_cast<double>(mean);
        wide[0] += distance * distance;
      }
    });
    team_sum(wide, wide_sums);
    rstd = static_cast<float>(
        1.0 / sqrt(wide[0] / static_cast<double>(a.width) + static_cast<double>(a.eps)));
  }
  if (threadIdx.x == 0) {
    if (a.mean != nullptr && !a.rms) a.mean[row] = mean;
    if (a.rstd != nullptr) a.rstd[row] = rstd;
  }
  float* y = a.y + row * a.width;
  packs.each([&](std::int64_t at, Pack<N> x) {
    const Pack<N> weight = load<N>(a.weight + at);
    const Pack<N> bias = a.bias != nullptr ? load<N>(a.bias + at) : zero_pack<N>();
#pragma unroll
    for (int j = 0; j < N; ++j) x.v[j] = fmaf((x.v[j] - mean) * rstd, weight.v[j], bias.v[j]);
    store<N>(x, y + at);
  });
}

/// With g = dy * weight: dx = rstd (g - mean(g) - xhat mean(g xhat)), the second term for LayerNorm
/// only.
struct Slope {
  float mean, rstd, mean_g, mean_gx;
  __device__ float xhat(float x) const { return (x - mean) * rstd; }
  __device__ float dx(float x, float dy, float weight) const {
    return rstd * fmaf(-xhat(x), mean_gx, fmaf(dy, weight, -mean_g));
  }
};

/// Rows [blockIdx.x * rows_each, ...), R at a time; every thread has the same K packs of each and
/// keeps their sums for dweight and dbias, which it writes to row blockIdx.x of the partial sums
/// [gridDim.x, width]. dbias may be null.
template <int N, int K, int R>
__global__ void __launch_bounds__(K == 1 ? 256 : 512)
    norm_backward_kernel(NormBackwardArgs a, std::int64_t rows_each, float* dweight, float* dbias) {
  __shared__ float sums[2][32 * 2 * R];
  const std::int64_t first = blockIdx.x * rows_each;
  const std::int64_t end = first + rows_each < a.rows ? first + rows_each : a.rows;
  const auto column = [](int k) {
    return (threadIdx.x + static_cast<std::int64_t>(k) * blockDim.x) * N;
  };
  Pack<N> weight[K], dw[K], db[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    weight[k] = column(k) < a.width ? load<N>(a.weight + column(k)) : zero_pack<N>();
    dw[k] = db[k] = zero_pack<N>();
  }
  const float inverse_width = 1.0f / static_cast<float>(a.width);
  int which = 0;
  for (std::int64_t row = first; row < end; row += R, which ^= 1) {
    Pack<N> x[R][K], dy[R][K], old[R][K];
    Slope slope[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const bool here = row + r < end;
      slope[r].mean = here && !a.rms ? a.mean[row + r] : 0.0f;
      slope[r].rstd = here ? a.rstd[row + r] : 0.0f;
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const bool inside = here && column(k) < a.width;
        const std::int64_t at = (row + r) * a.width + column(k);
        x[r][k] = inside ? load<N>(a.x + at) : zero_pack<N>();
        dy[r][k] = inside ? load<N>(a.dy + at) : zero_pack<N>();
        old[r][k] = inside && a.accumulate_dx ? load<N>(a.dx + at) : zero_pack<N>();
      }
    }
    float two[2 * R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      two[2 * r] = two[2 * r + 1] = 0.0f;
      if (row + r >= end) continue;
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (column(k) >= a.width) continue;
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const float g = dy[r][k].v[j] * weight[k].v[j], xhat = slope[r].xhat(x[r][k].v[j]);
          two[2 * r] += g;
          two[2 * r + 1] = fmaf(g, xhat, two[2 * r + 1]);
          dw[k].v[j] = fmaf(dy[r][k].v[j], xhat, dw[k].v[j]);
          db[k].v[j] += dy[r][k].v[j];
        }
      }
    }
    team_sum(two, sums[which]);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      slope[r].mean_g = a.rms ? 0.0f : two[2 * r] * inverse_width;
      slope[r].mean_gx = two[2 * r + 1] * inverse_width;
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (row + r >= end || column(k) >= a.width) continue;
        Pack<N> dx;
#pragma unroll
        for (int j = 0; j < N; ++j) {
          dx.v[j] = slope[r].dx(x[r][k].v[j], dy[r][k].v[j], weight[k].v[j]);
          if (a.accumulate_dx) dx.v[j] += old[r][k].v[j];
        }
        store<N>(dx, a.dx + (row + r) * a.width + column(k));
      }
    }
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (column(k) >= a.width) continue;
    const std::int64_t at = blockIdx.x * a.width + column(k);
    store<N>(dw[k], dweight + at);
    if (dbias != nullptr) store<N>(db[k], dbias + at);
  }
}

/// Wide rows: dx alone, a block for each, reading dy and x twice.
template <int N>
__global__ void __launch_bounds__(1024) norm_backward_wide_kernel(NormBackwardArgs a) {
  __shared__ float sums[64];
  const std::int64_t row = blockIdx.x;
  const RowPacks<N, 0> packs(a.x + row * a.width, a.width);
  const float* dy_row = a.dy + row * a.width;
  Slope slope;
  slope.mean = a.rms ? 0.0f : a.mean[row];
  slope.rstd = a.rstd[row];
  float two[2] = {0.0f, 0.0f};
  packs.each([&](std::int64_t at, const Pack<N>& x) {
    const Pack<N> dy = load<N>(dy_row + at), weight = load<N>(a.weight + at);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float g = dy.v[j] * weight.v[j];
      two[0] += g;
      two[1] = fmaf(g, slope.xhat(x.v[j]), two[1]);
    }
  });
  team_sum(two, sums);
  slope.mean_g = a.rms ? 0.0f : two[0] / static_cast<float>(a.width);
  slope.mean_gx = two[1] / static_cast<float>(a.width);
  float* dx_row = a.dx + row * a.width;
  packs.each([&](std::int64_t at, const Pack<N>& x) {
    const Pack<N> dy = load<N>(dy_row + at), weight = load<N>(a.weight + at);
    Pack<N> dx = a.accumulate_dx ? load<N>(dx_row + at) : zero_pack<N>();
#pragma unroll
    for (int j = 0; j < N; ++j) dx.v[j] += slope.dx(x.v[j], dy.v[j], weight.v[j]);
    store<N>(dx, dx_row + at);
  });
}

/// Terms of the sums over rows, for wide rows.
struct NormTerm {
  const float *dy, *x, *mean, *rstd;
  std::int64_t width;
  template <int N>
  __device__ Pack<N> load(std::int64_t row, std::int64_t col) const {
    const float level = mean != nullptr ? mean[row] : 0.0f;
    const Pack<N> in = cuda::load<N>(x + row * width + col);
    Pack<N> term = cuda::load<N>(dy + row * width + col);
#pragma unroll
    for (int j = 0; j < N; ++j) term.v[j] *= (in.v[j] - level) * rstd[row];
    return term;
  }
  bool vector() const {
    return width % 4 == 0 && aligned16(dy, x);
  }
};

template <int N, class Sum>
void forward(const NormForwardArgs& a, const Sum& sum, Stream& stream) {
  const std::int64_t packs = a.width / N;
  const auto run = [&](auto kernel, unsigned threads) {
    const dim3 block(threads, threads == 32 ? 8 : 1);
    launch(kernel, blocks_for(a.rows, block.y), block, 0, stream, a, sum);
  };
  if (packs <= 32)
    run(norm_forward_kernel<N, 1, Sum>, 32);
  else if (packs <= 64)
    run(norm_forward_kernel<N, 2, Sum>, 32);
  else if (packs <= 128)
    run(norm_forward_kernel<N, 4, Sum>, 32);
  else if (packs <= 256)
    run(norm_forward_kernel<N, 8, Sum>, 32);
  else if (packs <= 512)
    run(norm_forward_kernel<N, 4, Sum>, 128);
  else if (packs <= 1024)
    run(norm_forward_kernel<N, 4, Sum>, 256);
  else if (packs <= 2048)
    run(norm_forward_kernel<N, 8, Sum>, 256);
  else if (packs <= 4096)
    run(norm_forward_kernel<N, 8, Sum>, 512);
  else
    run(norm_forward_kernel<N, 0, Sum>, 1024);
}

template <int N>
void backward(const NormBackwardArgs& a, Device& device, Stream& stream) {
  const std::int64_t packs = a.width / N;
  if (packs > 2048) {
    // The sums first: dx may be dy or x.
    add_columns(a.rows, a.width, NormTerm{a.dy, a.x, a.rms ? nullptr : a.mean, a.rstd, a.width},
                a.dweight, device, stream);
    if (a.dbias != nullptr)
      add_columns(a.rows, a.width, Elements{a.dy, a.width}, a.dbias, device, stream);
    launch(norm_backward_wide_kernel<N>, blocks_for(a.rows, 1), 1024, 0, stream, a);
    return;
  }
  // Four blocks for each multiprocessor of the largest GPUs, however many this one has; at least 32
  // rows each keep the partial sums' share of the traffic at a few per cent.
  const std::int64_t rows_each = std::max<std::int64_t>(32, (a.rows + 527) / 528);
  const std::int64_t blocks = (a.rows + rows_each - 1) / rows_each;
  const Buffer<float> dweight(device, blocks, a.width);
  const Buffer<float> dbias =
      a.dbias != nullptr ? Buffer<float>(device, blocks, a.width) : Buffer<float>();
  const auto run = [&](auto kernel, std::int64_t packs_each) {
    const std::int64_t threads = ((packs + packs_each - 1) / packs_each + 31) / 32 * 32;
    launch(kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream, a,
           rows_each, dweight.data(), dbias.data());
  };
  if (packs <= 256)
    run(norm_backward_kernel<N, 1, 4>, 1);
  else if (packs <= 1024)
    run(norm_backward_kernel<N, 2, 2>, 2);
  else
    run(norm_backward_kernel<N, 4, 1>, 4);
  add_columns(blocks, a.width, Elements{dweight.data(), a.width}, a.dweight, device, stream);
  if (a.dbias != nullptr)
    add_columns(blocks, a.width, Elements{dbias.data(), a.width}, a.dbias, device, stream);
}

}  // namespace

void norm_forward(const NormForwardArgs& args, Stream& stream) {
  if (args.rows <= 0 || args.width <= 0) return;
  if (args.width % 4 == 0 && aligned16(args.x, args.weight, args.bias, args.y))
    forward<4>(args, NoSum{}, stream);
  else
    forward<1>(args, NoSum{}, stream);
}

void residual_norm_forward(const ResidualNormArgs& args, Stream& stream) {
  const NormForwardArgs& norm = args.norm;
  const ResidualForwardArgs& residual = args.residual;
  if (norm.rows <= 0 || norm.width <= 0) return;
  const bool vector = norm.width % 4 == 0 && aligned16(norm.x, norm.weight, norm.bias, norm.y);
  if (vector && !aligned16(residual.x, residual.r)) {
    // With fewer columns a thread the norm's sums would have another order than those of the norm
    // alone, which recomputing may call.
    residual_forward(residual, stream);
    return norm_forward(norm, stream);
  }
  const auto with = [&](const auto& sum) {
    if (vector)
      forward<4>(norm, sum, stream);
    else
      forward<1>(norm, sum, stream);
  };
  if (residual.dropout.probability > 0.0f)
    with(DropoutRows(residual));
  else
    with(Residual(residual));
}

void norm_backward(const NormBackwardArgs& args, Device& device, Stream& stream) {
  if (args.rows <= 0 || args.width <= 0) return;
  if (args.width % 4 == 0 && aligned16(args.dy, args.x, args.weight, args.dx))
    backward<4>(args, device, stream);
  else
    backward<1>(args, device, stream);
}

}  // namespace longspan::model::cuda
