#include <cmath>

#include "model/kernels/cuda/elementwise.cuh"
#include "model/kernels/cuda/kernels_cuda.hpp"
#include "parallel/philox.hpp"

namespace longspan::model::cuda {
namespace {

template <int N>
struct Branches {
  Pack<N> x, r;
};

/// y = (x or 0) + dropout(r). Four neighbouring columns share one block of random words, so a
/// thread with four columns makes each once.
struct DropoutRows {
  const float *x, *r;
  float* y;
  std::int64_t width;
  Dropout dropout;
  std::uint32_t threshold;  ///< kept iff the word is not below
  float scale;

  struct Row {
    std::int64_t begin;
    std::uint64_t sequence;
    std::uint32_t position;
  };
  __device__ Row row(std::int64_t row) const {
    return {
        row * width,
        static_cast<std::uint64_t>(dropout.sequences[sequence_of_row(row, dropout.tokens)]),
        // -1 marks padding; widened with its sign it would fill the counter's lower half as well.
        static_cast<std::uint32_t>(dropout.positions[row_in_sequence(row, dropout.tokens)])};
  }
  template <int N>
  __device__ Branches<N> load(const Row& row, std::int64_t col) const {
    return {x != nullptr ? cuda::load<N>(x + row.begin + col) : zero_pack<N>(),
            cuda::load<N>(r + row.begin + col)};
  }
  template <int N>
  __device__ void finish(const Row& row, std::int64_t col, Branches<N> in) const {
    std::uint32_t words[4];
    philox_words(dropout.key, row.sequence,
                 std::uint64_t{row.position} << 32 | static_cast<std::uint64_t>(col) / 4, words);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const std::uint32_t word = N == 4 ? words[j] : words[col % 4];
      const float branch = word < threshold ? 0.0f : in.r.v[j] * scale;
      in.x.v[j] = x != nullptr ? in.x.v[j] + branch : branch;
    }
    store<N>(in.x, y + row.begin + col);
  }
};

/// Without dropout: y = (x or 0) + r.
struct Residual {
  const float *x, *r;
  float* y;
  template <int N>
  __device__ Branches<N> load(std::int64_t i) const {
    return {x != nullptr ? cuda::load<N>(x + i) : zero_pack<N>(), cuda::load<N>(r + i)};
  }
  template <int N>
  __device__ void finish(std::int64_t i, Branches<N> in) const {
#pragma unroll
    for (int j = 0; j < N; ++j) in.r.v[j] = x != nullptr ? in.x.v[j] + in.r.v[j] : in.r.v[j];
    store<N>(in.r, y + i);
  }
};

}  // namespace

void residual_forward(const ResidualForwardArgs& args, Stream& stream) {
  if (args.dropout.probability > 0.0f) {
    // Kept iff word >= probability * 2^32; words are integers, so the bound may be rounded up. It
    // fits 32 bits for any fp32 below 1.
    const double bound = std::ceil(static_cast<double>(args.dropout.probability) * 4294967296.0);
    const bool none_kept = bound >= 4294967296.0;
    // The largest word passes this threshold, too, and is then multiplied by zero.
    DropoutRows rows{args.x,
                     args.r,
                     args.y,
                     args.width,
                     args.dropout,
                     none_kept ? 0xFFFFFFFFu : static_cast<std::uint32_t>(bound),
                     none_kept ? 0.0f : 1.0f / (1.0f - args.dropout.probability)};
    const bool vector = args.width % 4 == 0 && aligned16(args.x, args.r, args.y);
    run_rows(args.rows, args.width, vector, rows, stream);
    return;
  }
  if (args.x == nullptr && args.y == args.r) return;
  run_flat(args.rows * args.width, Residual{args.x, args.r, args.y}, stream,
           {args.x, args.r, args.y});
}

void residual_backward(const ResidualBackwardArgs& args, Stream& stream) {
  residual_forward({args.rows, args.width, nullptr, args.dy, args.dr, args.dropout}, stream);
}

}  // namespace longspan::model::cuda
