#include "model/kernels/cuda/elementwise.cuh"
#include "model/kernels/cuda/kernels_cuda.hpp"

namespace longspan::model::cuda {
namespace {

// 0.5 (1 + tanh(u)) = sigmoid(2u): one exponential, and no cancellation where tanh comes near -1.
constexpr float kTwoRootTwoOverPi = 1.5957691216057308f;
constexpr float kCubic = 0.044715f;

/// s = 1 / (1 + e^-x) and 1 - s, both without cancellation.
struct Sigmoid {
  float s, complement;
};
__device__ inline Sigmoid sigmoid(float x) {
  // Beyond 87 e^-x would overflow and make NaN of 0 * infinity; NaN passes both comparisons.
  const float bounded = x > 87.0f ? 87.0f : x < -87.0f ? -87.0f : x;
  const float e = expf(-bounded), s = 1.0f / (1.0f + e);
  return {s, e * s};
}
__device__ inline Sigmoid gelu_gate(float x, float square) {
  return sigmoid(kTwoRootTwoOverPi * fmaf(kCubic * square, x, x));
}

struct GeluForward {
  GeluForwardArgs a;
  template <int N>
  __device__ Pack<N> load(std::int64_t i) const {
    return cuda::load<N>(a.x + i);
  }
  template <int N>
  __device__ void finish(std::int64_t i, Pack<N> x) const {
#pragma unroll
    for (int j = 0; j < N; ++j) x.v[j] *= gelu_gate(x.v[j], x.v[j] * x.v[j]).s;
    store<N>(x, a.y + i);
  }
};

/// The words of the numbers' bfloat16, and the numbers that these are.
template <int N>
__device__ inline Pack<N, std::uint16_t> rounded(Pack<N>& x) {
  Pack<N, std::uint16_t> bits;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const std::uint32_t word = bf16_word(x.v[j]);
    x.v[j] = __uint_as_float(word);
    bits.v[j] = static_cast<std::uint16_t>(word >> 16);
  }
  return bits;
}

struct GeluBf16Forward {
  GeluBf16ForwardArgs a;
  template <int N>
  __device__ Pack<N> load(std::int64_t i) const {
    return cuda::load<N>(a.x + i);
  }
  template <int N>
  __device__ void finish(std::int64_t i, Pack<N> x) const {
    using Words = Pack<N, std::uint16_t>;
    const Words hidden = rounded(x);
    if (a.hidden_bf16 != nullptr) *reinterpret_cast<Words*>(a.hidden_bf16 + i) = hidden;
#pragma unroll
    for (int j = 0; j < N; ++j) x.v[j] *= gelu_gate(x.v[j], x.v[j] * x.v[j]).s;
    *reinterpret_cast<Words*>(a.y_bf16 + i) = rounded(x);
  }
};

template <int N>
struct Two {
  Pack<N> x, dy;
};

struct GeluBackward {
  GeluBackwardArgs a;
  template <int N>
  __device__ Two<N> load(std::int64_t i) const {
    return {cuda::load<N>(a.x + i), cuda::load<N>(a.dy + i)};
  }
  template <int N>
  __device__ void finish(std::int64_t i, Two<N> in) const {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float x = in.x.v[j];
      // Beyond |x| = 100 the gate is closed or open; the slope must not outgrow what is left of
      // 1 - s.
      const float full = x * x, square = full > 1e4f ? 1e4f : full;
      const Sigmoid gate = gelu_gate(x, square);
      // (x s(2u))' = s + x s (1 - s) 2u'
      const float slope = fmaf(3.0f * kCubic * kTwoRootTwoOverPi, square, kTwoRootTwoOverPi);
      in.dy.v[j] *= fmaf(x * (gate.s * gate.complement), slope, gate.s);
    }
    store<N>(in.dy, a.dx + i);
  }
};

struct SwigluForward {
  SwigluForwardArgs a;
  struct Row {
    const float* gate;
    float* y;
  };
  __device__ Row row(std::int64_t row) const {
    return {a.gate_up + row * 2 * a.width, a.y + row * a.width};
  }
  template <int N>
  __device__ Two<N> load(const Row& row, std::int64_t col) const {
    return {cuda::load<N>(row.gate + col), cuda::load<N>(row.gate + a.width + col)};
  }
  template <int N>
  __device__ void finish(const Row& row, std::int64_t col, Two<N> in) const {
#pragma unroll
    for (int j = 0; j < N; ++j) in.x.v[j] *= sigmoid(in.x.v[j]).s * in.dy.v[j];
    store<N>(in.x, row.y + col);
  }
};

struct SwigluBackward {
  SwigluBackwardArgs a;
  struct Row {
    const float *gate, *dy;
    float* dgate;
  };
  template <int N>
  struct Three {
    Pack<N> gate, up, dy;
  };
  __device__ Row row(std::int64_t row) const {
    return {a.gate_up + row * 2 * a.width, a.dy + row * a.width, a.dgate_up + row * 2 * a.width};
  }
  template <int N>
  __device__ Three<N> load(const Row& row, std::int64_t col) const {
    return {cuda::load<N>(row.gate + col), cuda::load<N>(row.gate + a.width + col),
            cuda::load<N>(row.dy + col)};
  }
  template <int N>
  __device__ void finish(const Row& row, std::int64_t col, Three<N> in) const {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float gate = in.gate.v[j], dy = in.dy.v[j];
      const Sigmoid sigma = sigmoid(gate);
      const float silu = gate * sigma.s;
      const float slope = fmaf(silu, sigma.complement, sigma.s);  // silu' = s + g s (1 - s)
      in.gate.v[j] = dy * in.up.v[j] * slope;
      in.up.v[j] = dy * silu;
    }
    store<N>(in.gate, row.dgate + col);
    store<N>(in.up, row.dgate + a.width + col);
  }
};

struct Add {
  const float* x;
  float* y;
  template <int N>
  __device__ Two<N> load(std::int64_t i) const {
    return {cuda::load<N>(x + i), cuda::load<N>(y + i)};
  }
  template <int N>
  __device__ void finish(std::int64_t i, Two<N> in) const {
#pragma unroll
    for (int j = 0; j < N; ++j) in.dy.v[j] += in.x.v[j];
    store<N>(in.dy, y + i);
  }
};

struct AddRows {
  const float* x;
  std::int64_t x_row;
  float* y;
  std::int64_t y_row;
  __device__ Add row(std::int64_t row) const { return {x + row * x_row, y + row * y_row}; }
  template <int N>
  __device__ Two<N> load(const Add& row, std::int64_t col) const {
    return row.load<N>(col);
  }
  template <int N>
  __device__ void finish(const Add& row, std::int64_t col, const Two<N>& in) const {
    row.finish<N>(col, in);
  }
};

struct StartFromBias {
  const float* bias;
  bool accumulate;
  float* c;
  std::int64_t ldc;
  __device__ float* row(std::int64_t row) const { return c + row * ldc; }
  template <int N>
  __device__ Two<N> load(const float* row, std::int64_t col) const {
    return {accumulate ? cuda::load<N>(row + col) : zero_pack<N>(),
            bias != nullptr ? cuda::load<N>(bias + col) : zero_pack<N>()};
  }
  template <int N>
  __device__ void finish(float* row, std::int64_t col, Two<N> in) const {
#pragma unroll
    for (int j = 0; j < N; ++j) in.x.v[j] += in.dy.v[j];
    store<N>(in.x, row + col);
  }
};

/// Threads x of a block turn the pairs of one head, y has the heads and z the rows.
template <int N>
__global__ void rotary_kernel(RotaryArgs a) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.z + threadIdx.z;
  if (row >= a.rows) return;
  const std::int64_t half = a.head_size / 2;
  const float* cosine = a.cos_sin + a.positions[row_in_sequence(row, a.tokens)] * a.head_size;
  const float direction = a.inverse ? -1.0f : 1.0f;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * N; i < half;
       i += static_cast<std::int64_t>(blockDim.x) * N) {
    const Pack<N> c = load<N>(cosine + i), s = load<N>(cosine + half + i);
    float* x = a.x + row * a.row_stride + i;
#pragma unroll 2
    for (std::int64_t head = threadIdx.y; head < a.heads; head += blockDim.y) {
      float* p = x + head * a.head_size;
      Pack<N> left = load<N>(p), right = load<N>(p + half);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float l = left.v[j], r = right.v[j], sine = direction * s.v[j];
        left.v[j] = fmaf(l, c.v[j], -(r * sine));
        right.v[j] = fmaf(r, c.v[j], l * sine);
      }
      store<N>(left, p);
      store<N>(right, p + half);
    }
  }
}

}  // namespace

void gelu_forward(const GeluForwardArgs& args, Stream& stream) {
  run_flat(args.count, GeluForward{args}, stream, {args.x, args.y});
}

void gelu_bf16_forward(const GeluBf16ForwardArgs& args, Stream& stream) {
  const auto aligned8 = [](const std::uint16_t* p) {
    return reinterpret_cast<std::uintptr_t>(p) % 8 == 0;
  };
  run_flat(args.count, aligned16(args.x) && aligned8(args.hidden_bf16) && aligned8(args.y_bf16), 0,
           GeluBf16Forward{args}, stream);
}

void gelu_backward(const GeluBackwardArgs& args, Stream& stream) {
  run_flat(args.count, GeluBackward{args}, stream, {args.x, args.dy, args.dx});
}

void swiglu_forward(const SwigluForwardArgs& args, Stream& stream) {
  const bool vector = args.width % 4 == 0 && aligned16(args.gate_up, args.y);
  run_rows(args.rows, args.width, vector, SwigluForward{args}, stream);
}

void swiglu_backward(const SwigluBackwardArgs& args, Stream& stream) {
  const bool vector = args.width % 4 == 0 && aligned16(args.gate_up, args.dy, args.dgate_up);
  run_rows(args.rows, args.width, vector, SwigluBackward{args}, stream);
}

void add(std::int64_t count, const float* x, float* y, Stream& stream) {
  run_flat(count, Add{x, y}, stream, {x, y});
}

void add_rows(std::int64_t rows, std::int64_t cols, const float* x, std::int64_t x_row, float* y,
              std::int64_t y_row, Stream& stream) {
  const bool vector = cols % 4 == 0 && x_row % 4 == 0 && y_row % 4 == 0 && aligned16(x, y);
  run_rows(rows, cols, vector, AddRows{x, x_row, y, y_row}, stream);
}

void start_from_bias(std::int64_t rows, std::int64_t cols, const float* bias, bool accumulate,
                     float* c, std::int64_t ldc, Stream& stream) {
  const bool vector = cols % 4 == 0 && ldc % 4 == 0 && aligned16(bias, c);
  run_rows(rows, cols, vector, StartFromBias{bias, accumulate, c, ldc}, stream);
}

void rotary(const RotaryArgs& args, Stream& stream) {
  if (args.rows <= 0 || args.heads <= 0) return;
  const bool vector =
      args.head_size % 8 == 0 && args.row_stride % 4 == 0 && aligned16(args.x, args.cos_sin);
  const std::int64_t half = args.head_size / 2;
  const auto across =
      static_cast<unsigned>(std::min<std::int64_t>(32, power_of_two(vector ? half / 4 : half)));
  // At least two heads a thread, if there are as many: they share its cosines and sines.
  const auto heads = static_cast<unsigned>(
      std::min<std::int64_t>(kThreads / across, power_of_two((args.heads + 1) / 2)));
  const unsigned rows = std::min(64u, kThreads / (across * heads));  // CUDA's limit for z is 64
  const dim3 block(across, heads, rows);
  if (vector)
    launch(rotary_kernel<4>, blocks_for(args.rows, rows), block, 0, stream, args);
  else
    launch(rotary_kernel<1>, blocks_for(args.rows, rows), block, 0, stream, args);
}

}  // namespace longspan::model::cuda
