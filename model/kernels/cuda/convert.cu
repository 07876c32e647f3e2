#include "model/kernels/cuda/elementwise.cuh"
#include "model/kernels/cuda/kernels_cuda.hpp"

namespace longspan::model::cuda {
namespace {

using Bits = std::uint16_t;

struct RoundToBf16 {
  float* x;
  template <int N>
  __device__ Pack<N> load(std::int64_t i) const {
    return cuda::load<N>(x + i);
  }
  template <int N>
  __device__ void finish(std::int64_t i, Pack<N> pack) const {
#pragma unroll
    for (int j = 0; j < N; ++j) pack.v[j] = __uint_as_float(bf16_word(pack.v[j]));
    store<N>(pack, x + i);
  }
};

struct RowToBf16 {
  const float* x;
  Bits* y;
  template <int N>
  __device__ Pack<N> load(std::int64_t i) const {
    return cuda::load<N>(x + i);
  }
  template <int N>
  __device__ void finish(std::int64_t i, const Pack<N>& pack) const {
    Pack<N, Bits> bits;
#pragma unroll
    for (int j = 0; j < N; ++j) bits.v[j] = static_cast<Bits>(bf16_word(pack.v[j]) >> 16);
    *reinterpret_cast<Pack<N, Bits>*>(y + i) = bits;
  }
};

/// With gaps between rows.
struct ToBf16 {
  const float* x;
  std::int64_t x_row;
  Bits* y;
  std::int64_t y_row;
  __device__ RowToBf16 row(std::int64_t row) const { return {x + row * x_row, y + row * y_row}; }
  template <int N>
  __device__ Pack<N> load(const RowToBf16& row, std::int64_t col) const {
    return row.load<N>(col);
  }
  template <int N>
  __device__ void finish(const RowToBf16& row, std::int64_t col, const Pack<N>& pack) const {
    row.finish<N>(col, pack);
  }
};

struct FromBf16 {
  const Bits* x;
  float* y;
  template <int N>
  __device__ Pack<N, Bits> load(std::int64_t i) const {
    return *reinterpret_cast<const Pack<N, Bits>*>(x + i);
  }
  template <int N>
  __device__ void finish(std::int64_t i, const Pack<N, Bits>& bits) const {
    Pack<N> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) pack.v[j] = __uint_as_float(std::uint32_t{bits.v[j]} << 16);
    store<N>(pack, y + i);
  }
};

/// Packs of four bits words are moved as 8 bytes.
bool aligned8(const Bits* p) {
  return reinterpret_cast<std::uintptr_t>(p) % 8 == 0;
}

}  // namespace

void round_to_bf16(std::int64_t count, float* x, Stream& stream) {
  run_flat(count, RoundToBf16{x}, stream, {x});
}

void to_bf16(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row,
             std::uint16_t* y, std::int64_t y_row, Stream& stream) {
  const bool vector = aligned16(x) && aligned8(y);
  if (x_row == cols && y_row == cols)
    run_flat(rows * cols, vector, 0, RowToBf16{x, y}, stream);
  else
    run_rows(rows, cols, vector && cols % 4 == 0 && x_row % 4 == 0 && y_row % 4 == 0,
             ToBf16{x, x_row, y, y_row}, stream);
}

void from_bf16(std::int64_t count, const std::uint16_t* x, float* y, Stream& stream) {
  run_flat(count, aligned8(x) && aligned16(y), 0, FromBf16{x, y}, stream);
}

}  // namespace longspan::model::cuda
