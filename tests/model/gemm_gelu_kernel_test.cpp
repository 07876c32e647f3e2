// Products with GELU behind or before them: against plain loops in double, and against the
// operations one after the other, whose bits the CPU and the emulator give (a GPU may do it all in
// the product's epilogue, in other roundings).
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "support/kernel_backend.hpp"
#include "support/reference.hpp"

namespace longspan::model {
namespace {

namespace reference = testing_support;
using testing_support::Doubles;
using testing_support::largest_error;
using testing_support::random_floats;
using Words = std::vector<std::uint16_t>;

float number(std::uint16_t word) {
  return std::bit_cast<float>(std::uint32_t{word} << 16);
}
std::vector<float> numbers(const Words& words) {
  std::vector<float> result;
  for (const std::uint16_t word : words) result.push_back(number(word));
  return result;
}

/// Half of the last of bfloat16's 8 digits, twice: what stands before GELU is rounded, too, and a
/// fused epilogue rounds the bias.
constexpr double kBf16Error = 3.0 / 256;

struct Case {
  std::int64_t m, n, k;
  bool bf16, bias;
};
const Case kCases[] = {{1, 1, 1, false, true},     {5, 7, 3, false, true},
                       {33, 65, 17, false, false}, {1, 1, 1, true, true},
                       {5, 7, 3, true, true},      {33, 65, 17, true, false},
                       {64, 128, 64, true, true},  {40, 72, 24, true, true}};

/// a [m, k], b [n, k] as in a layer's forward pass, numbers that are bfloat16 already.
struct Problem {
  explicit Problem(const Case& c) : a_bf16(words(c.m * c.k, 1)), b_bf16(words(c.n * c.k, 2)) {
    a = numbers(a_bf16), b = numbers(b_bf16);
    bias = random_floats(c.n, 3);
    before = random_floats(c.m * c.n, 4);
    args.m = c.m, args.n = c.n, args.k = c.k, args.lda = args.ldb = c.k, args.ldc = c.n;
    args.trans_b = true;
    args.bf16_operands = c.bf16;
    if (c.bf16)
      args.a_bf16 = a_bf16.data(), args.b_bf16 = b_bf16.data();
    else
      args.a = a.data(), args.b = b.data();
    if (c.bias) args.bias = bias.data();
    for (std::int64_t i = 0; i < c.m; ++i)
      for (std::int64_t j = 0; j < c.n; ++j) {
        double sum = c.bias ? bias[static_cast<std::size_t>(j)] : 0.0;
        for (std::int64_t p = 0; p < c.k; ++p)
          sum += static_cast<double>(a[static_cast<std::size_t>(i * c.k + p)]) *
                 static_cast<double>(b[static_cast<std::size_t>(j * c.k + p)]);
        expected.push_back(sum);
      }
  }
  static Words words(std::int64_t count, std::uint64_t seed) {
    Words result;
    for (const float x : random_floats(count, seed, 0.4f))
      result.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(x) >> 16));
    return result;
  }
  Words a_bf16, b_bf16;
  std::vector<float> a, b, bias, before;
  Doubles expected;  ///< the product and its bias
  GemmArgs args;
};

double gelu(double x) {
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}
double gelu_slope(double x) {
  constexpr double kStep = 1e-5;
  return (gelu(x + kStep) - gelu(x - kStep)) / (2 * kStep);
}
Doubles gelu(Doubles x) {
  for (double& value : x) value = gelu(value);
  return x;
}

class GemmGeluKernel : public testing_support::EveryBackend {
 protected:
  /// Whether nothing is fused with the product: the operations' own bits.
  static bool composed() { return !GetParam().starts_with("cuda"); }
};

TEST_P(GemmGeluKernel, ForwardEqualsReference) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << c.m << " x " << c.n << " x " << c.k << " bf16 " << c.bf16);
    Problem problem(c);
    std::vector<float> hidden(problem.expected.size()), y = hidden, plain = hidden;
    Words hidden_bf16(hidden.size()), y_bf16 = hidden_bf16, alone = hidden_bf16;
    problem.args.c = plain.data();
    kernels().gemm(problem.args);
    problem.args.c = hidden.data();
    if (!c.bf16) {
      kernels().gemm_gelu_forward({problem.args, y.data(), nullptr, nullptr});
      EXPECT_LT(largest_error(hidden, problem.expected), 2e-6);
      EXPECT_LT(largest_error(y, gelu(problem.expected)), 3e-6);
      EXPECT_EQ(hidden, plain);
      continue;
    }
    // Twice: a GPU tries the ways at the first call and has chosen at the second.
    for (int call = 0; call < 2; ++call) {
      kernels().gemm_gelu_forward({problem.args, y.data(), hidden_bf16.data(), y_bf16.data()});
      EXPECT_LT(largest_error(numbers(hidden_bf16), problem.expected), kBf16Error);
      EXPECT_LT(largest_error(numbers(y_bf16), gelu(problem.expected)), kBf16Error);
    }
    kernels().gemm_gelu_forward({problem.args, y.data(), nullptr, alone.data()});
    EXPECT_LT(largest_error(numbers(alone), gelu(problem.expected)), kBf16Error);
    if (!composed()) continue;
    EXPECT_EQ(alone, y_bf16) << "whether or not what stands before GELU is kept";
    kernels().round_to_bf16(c.m * c.n, plain.data());
    EXPECT_EQ(numbers(hidden_bf16), plain);
  }
}

TEST_P(GemmGeluKernel, BackwardEqualsReference) {
  for (const Case& c : kCases) {
    for (const bool accumulate : {false, true}) {
      SCOPED_TRACE(testing::Message() << c.m << " x " << c.n << " x " << c.k << " bf16 " << c.bf16
                                      << " accumulate " << accumulate);
      Problem problem({c.m, c.n, c.k, c.bf16, false});
      const std::vector<float> hidden = random_floats(c.m * c.n, 5, 2.0f);
      problem.args.accumulate = accumulate;
      Doubles expected = problem.expected, sums(static_cast<std::size_t>(c.n), 1.0);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        if (accumulate) expected[i] += problem.before[i];
        expected[i] *= gelu_slope(hidden[i]);
        sums[i % static_cast<std::size_t>(c.n)] += expected[i];
      }
      const double bound = composed() || !c.bf16 ? 5e-6 : 2.0 / 256;
      for (const bool sum : {true, false}) {
        std::vector<float> dx = problem.before, dbias(static_cast<std::size_t>(c.n), 1.0f);
        problem.args.c = dx.data();
        kernels().gemm_gelu_backward({problem.args, hidden.data(), sum ? dbias.data() : nullptr});
        EXPECT_LT(largest_error(dx, expected), bound);
        if (sum) {
          EXPECT_LT(largest_error(dbias, sums), bound * std::sqrt(static_cast<double>(c.m)));
        }
        if (!composed()) continue;
        std::vector<float> plain = problem.before, plain_sums(dbias.size(), 1.0f);
        problem.args.c = plain.data();
        kernels().gemm(problem.args);
        kernels().gelu_backward({c.m * c.n, hidden.data(), plain.data(), plain.data()});
        if (sum) kernels().add_column_sums(c.m, c.n, plain.data(), plain_sums.data());
        EXPECT_EQ(dx, plain);
        EXPECT_EQ(dbias, plain_sums);
      }
    }
  }
}

/// One pass gives the bits of the four that round, store, compute and round.
TEST_P(GemmGeluKernel, RoundedGeluIsTheFourStepsInOne) {
  for (const std::int64_t count : {1, 3, 4, 517, 4099}) {
    std::vector<float> x = random_floats(count, 7, 3.0f);
    x[0] = count % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : 1e30f;
    std::vector<float> steps = x, active(x.size()), y(x.size());
    Words hidden(x.size()), result = hidden, alone = hidden, expected_hidden = hidden,
                            expected = hidden;
    kernels().round_to_bf16(count, steps.data());
    kernels().to_bf16(1, count, steps.data(), count, expected_hidden.data());
    kernels().gelu_forward({count, steps.data(), active.data()});
    kernels().to_bf16(1, count, active.data(), count, expected.data());
    std::vector<float> room = x;
    kernels().gelu_bf16_forward({count, room.data(), y.data(), hidden.data(), result.data()});
    EXPECT_EQ(hidden, expected_hidden) << count;
    EXPECT_EQ(result, expected) << count;
    room = x;
    kernels().gelu_bf16_forward({count, room.data(), y.data(), nullptr, alone.data()});
    EXPECT_EQ(alone, expected) << count;
  }
}

/// SwiGLU between bfloat16 numbers: the bits of widening, computing and rounding.
TEST_P(GemmGeluKernel, RoundedSwigluIsItsStepsInOne) {
  for (const auto& [rows, width] :
       {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 5}, {5, 33}, {2, 1030}, {40, 2100}}) {
    if (emulated() && rows * width > 4000) continue;
    SCOPED_TRACE(testing::Message() << rows << " x " << width);
    const std::int64_t count = rows * width;
    std::vector<float> wide = random_floats(2 * count, 3, 5.0f);
    wide[0] = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> dy = random_floats(count, 4);
    Words gate_up(wide.size()), expected(dy.size()), y = expected, gradient = gate_up;
    kernels().to_bf16(1, 2 * count, wide.data(), 2 * count, gate_up.data());
    kernels().round_to_bf16(2 * count, wide.data());
    std::vector<float> active(dy.size()), dwide(wide.size());
    kernels().swiglu_forward({rows, width, wide.data(), active.data()});
    kernels().to_bf16(1, count, active.data(), count, expected.data());
    kernels().swiglu_backward({rows, width, wide.data(), dy.data(), dwide.data()});
    kernels().to_bf16(1, 2 * count, dwide.data(), 2 * count, gradient.data());

    std::vector<float> room(wide.size()), room_y(dy.size());
    kernels().swiglu_bf16_forward(
        {rows, width, gate_up.data(), y.data(), room.data(), room_y.data()});
    EXPECT_EQ(y, expected);
    kernels().swiglu_bf16_backward({rows, width, gate_up.data(), dy.data(), room.data()});
    EXPECT_EQ(gate_up, gradient);
  }
}

/// A product rounded behind it, whichever way the backend takes: few rows, few or many terms, one
/// operand still in fp32.
TEST_P(GemmGeluKernel, ProductToBf16IsTheProductRounded) {
  for (const auto& [m, n, k] : {std::array<std::int64_t, 3>{1, 1, 1},
                                {5, 7, 33},
                                {33, 47, 65},
                                {100, 130, 512},
                                {257, 96, 1000},
                                {70, 40, 1700}}) {
    if (emulated() && m * n * k > 4000) continue;
    for (const bool bias : {false, true})
      for (const bool trans_b : {false, true})
        for (const bool rounded_a : {false, true}) {
          SCOPED_TRACE(testing::Message()
                       << m << " x " << n << " x " << k << (bias ? " bias" : "")
                       << (trans_b ? " trans_b" : "") << (rounded_a ? " rounded_a" : ""));
          const std::vector<float> a = random_floats(m * k, 5), b = random_floats(k * n, 6),
                                   biases = random_floats(n, 7);
          Words a_bits(a.size()), b_bits(b.size());
          kernels().to_bf16(1, m * k, a.data(), m * k, a_bits.data());
          kernels().to_bf16(1, k * n, b.data(), k * n, b_bits.data());
          std::vector<float> c(static_cast<std::size_t>(m * n));
          GemmArgs args;
          args.m = m, args.n = n, args.k = k, args.lda = k, args.ldb = trans_b ? k : n;
          args.ldc = n, args.c = c.data(), args.trans_b = trans_b, args.bf16_operands = true;
          args.a = rounded_a ? nullptr : a.data(),
          args.a_bf16 = rounded_a ? a_bits.data() : nullptr;
          args.b_bf16 = b_bits.data(), args.bias = bias ? biases.data() : nullptr;
          Words expected(c.size()), found(c.size(), 0x5555);
          kernels().gemm(args);
          kernels().to_bf16(m, n, c.data(), n, expected.data());
          kernels().gemm_to_bf16({args, found.data()});
          EXPECT_EQ(found, expected);
        }
  }
}

EVERY_BACKEND(GemmGeluKernel);

}  // namespace
}  // namespace longspan::model
