/// x + dropout(r), as operations of elementwise.cuh (dropout.cu) and as the rows that a norm reads
/// (norm.cu): both give the same bits.
#pragma once

#include <cmath>

#include "model/kernels/cuda/elementwise.cuh"
#include "model/kernels/pointwise.hpp"
#include "parallel/philox.hpp"

namespace longspan::model::cuda {

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

  explicit DropoutRows(const ResidualForwardArgs& args)
      : x(args.x), r(args.r), y(args.y), width(args.width), dropout(args.dropout) {
    // Kept iff word >= probability * 2^32; words are integers, so the bound may be rounded up. It
    // fits 32 bits for any fp32 below 1.
    const double bound = std::ceil(static_cast<double>(dropout.probability) * 4294967296.0);
    const bool none_kept = bound >= 4294967296.0;
    // The largest word passes this threshold, too, and is then multiplied by zero.
    threshold = none_kept ? 0xFFFFFFFFu : static_cast<std::uint32_t>(bound);
    scale = none_kept ? 0.0f : 1.0f / (1.0f - dropout.probability);
  }

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
  /// Writes the sum and returns it.
  template <int N>
  __device__ Pack<N> finish(const Row& row, std::int64_t col, Branches<N> in) const {
    std::uint32_t words[4];
    philox_words(dropout.key, row.sequence,
                 std::uint64_t{row.position} << 32 | static_cast<std::uint64_t>(col) / 4, words);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      // Not words[col % 4]: a computed index would put the words into local memory.
      const std::uint32_t one = static_cast<std::uint32_t>(col) % 4;
      const std::uint32_t word = N == 4     ? words[j]
                                 : one == 0 ? words[0]
                                 : one == 1 ? words[1]
                                 : one == 2 ? words[2]
                                            : words[3];
      const float branch = word < threshold ? 0.0f : in.r.v[j] * scale;
      in.x.v[j] = x != nullptr ? in.x.v[j] + branch : branch;
    }
    store<N>(in.x, y + row.begin + col);
    return in.x;
  }
};

/// Without dropout: y = (x or 0) + r.
struct Residual {
  const float *x, *r;
  float* y;
  std::int64_t width;

  explicit Residual(const ResidualForwardArgs& args)
      : x(args.x), r(args.r), y(args.y), width(args.width) {}

  template <int N>
  __device__ Branches<N> load(std::int64_t i) const {
    return {x != nullptr ? cuda::load<N>(x + i) : zero_pack<N>(), cuda::load<N>(r + i)};
  }
  template <int N>
  __device__ Pack<N> finish(std::int64_t i, Branches<N> in) const {
#pragma unroll
    for (int j = 0; j < N; ++j) in.r.v[j] = x != nullptr ? in.x.v[j] + in.r.v[j] : in.r.v[j];
    store<N>(in.r, y + i);
    return in.r;
  }

  /// The same by rows.
  struct Row {
    std::int64_t begin;
  };
  __device__ Row row(std::int64_t row) const {
    return {row * width};
  }
  template <int N>
  __device__ Branches<N> load(const Row& row, std::int64_t col) const {
    return load<N>(row.begin + col);
  }
  template <int N>
  __device__ Pack<N> finish(const Row& row, std::int64_t col, const Branches<N>& in) const {
    return finish<N>(row.begin + col, in);
  }
};

}  // namespace longspan::model::cuda
