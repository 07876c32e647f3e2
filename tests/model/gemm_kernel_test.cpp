// Matrix products against plain loops in double: every combination of its arguments on odd
// sizes.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "model/kernels/cpu/bf16_operand.hpp"
#include "parallel/device.hpp"
#include "parallel/random.hpp"
#include "support/kernel_backend.hpp"

namespace longspan::model {
namespace {

/// Nearest bfloat16 found by comparing the two neighbours in double, not by the trick under test.
double nearest_bf16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x) & 0xFFFF0000u;
  const double low = std::bit_cast<float>(bits), high = std::bit_cast<float>(bits + 0x10000u);
  const double below = std::abs(x - low), above = std::abs(high - x);
  if (below != above) return below < above ? low : high;
  return (bits & 0x10000u) == 0 ? low : high;
}

struct Case {
  std::int64_t m, n, k;
  bool trans_a = false, trans_b = false, accumulate = false, bias = false, bf16 = false;
  std::int64_t padding = 0;  ///< elements at the end of every row that belong to nobody

  std::string text() const {
    return fmt::format(
        "m={} n={} k={} trans_a={} trans_b={} accumulate={} bias={} bf16={} padding={}", m, n, k,
        trans_a, trans_b, accumulate, bias, bf16, padding);
  }
};

constexpr float kUntouched = 12345.0f;

/// Operands of a case; the padding holds NaN in a and b, and in c a value that must survive.
class Problem {
 public:
  explicit Problem(const Case& c, std::uint64_t seed = 1)
      : case_(c),
        a_(filled(c.trans_a ? c.k : c.m, c.trans_a ? c.m : c.k, seed)),
        b_(filled(c.trans_b ? c.n : c.k, c.trans_b ? c.k : c.n, seed + 1)),
        initial_(filled(c.m, c.n, seed + 2)),
        bias_(filled(1, c.n, seed + 3)) {
    for (std::int64_t i = 0; i < c.m; ++i)
      for (std::int64_t j = c.n; j < c.n + c.padding; ++j)
        initial_[i * (c.n + c.padding) + j] = kUntouched;
    if (!c.accumulate)  // what stands in c must not be read
      for (std::int64_t i = 0; i < c.m; ++i)
        for (std::int64_t j = 0; j < c.n; ++j) initial_[i * (c.n + c.padding) + j] = std::nanf("");
  }

  std::vector<float>& a() { return a_; }
  std::vector<float>& b() { return b_; }

  /// rounded_a, rounded_b: the operand is given as bfloat16 numbers and not in fp32.
  std::vector<float> run(testing_support::HostKernels& kernels, bool rounded_a = false,
                         bool rounded_b = false) const {
    std::vector<float> c = initial_;
    GemmArgs args;
    args.m = case_.m, args.n = case_.n, args.k = case_.k;
    args.a = a_.data(), args.trans_a = case_.trans_a,
    args.lda = (case_.trans_a ? case_.m : case_.k) + case_.padding;
    args.b = b_.data(), args.trans_b = case_.trans_b,
    args.ldb = (case_.trans_b ? case_.k : case_.n) + case_.padding;
    args.c = c.data(), args.ldc = case_.n + case_.padding;
    args.accumulate = case_.accumulate;
    args.bias = case_.bias ? bias_.data() : nullptr;
    args.bf16_operands = case_.bf16;
    std::vector<std::uint16_t> a, b;
    if (rounded_a) a = rounded(a_), args.a_bf16 = a.data(), args.a = nullptr;
    if (rounded_b) b = rounded(b_), args.b_bf16 = b.data(), args.b = nullptr;
    kernels.gemm(args);
    return c;
  }

  /// Compares every row_step-th row with the loops; the bound is that of a sum of k terms in fp32,
  /// in any order.
  void expect_right(const std::vector<float>& c, std::int64_t row_step = 1) const {
    const std::int64_t lda = (case_.trans_a ? case_.m : case_.k) + case_.padding;
    const std::int64_t ldb = (case_.trans_b ? case_.k : case_.n) + case_.padding,
                       ldc = case_.n + case_.padding;
    auto operand = [&](float x) { return case_.bf16 ? nearest_bf16(x) : static_cast<double>(x); };
    int wrong = 0;
    for (std::int64_t i = 0; i < case_.m; i += row_step) {
      for (std::int64_t j = 0; j < case_.n; ++j) {
        double sum = case_.accumulate ? initial_[i * ldc + j] : 0.0, size = std::abs(sum);
        if (case_.bias) sum += bias_[j], size += std::abs(bias_[j]);
        for (std::int64_t p = 0; p < case_.k; ++p) {
          const double term = operand(a_[case_.trans_a ? p * lda + i : i * lda + p]) *
                              operand(b_[case_.trans_b ? j * ldb + p : p * ldb + j]);
          sum += term, size += std::abs(term);
        }
        const double bound = 1e-6 + 0x1p-24 * size * (4 + std::sqrt(static_cast<double>(case_.k)));
        if (!(std::abs(c[i * ldc + j] - sum) <= bound) && ++wrong <= 3)
          ADD_FAILURE() << case_.text() << ": c[" << i << ", " << j << "] = " << c[i * ldc + j]
                        << ", expected " << sum << " +- " << bound;
      }
      for (std::int64_t j = case_.n; j < ldc; ++j)
        if (c[i * ldc + j] != kUntouched)
          ADD_FAILURE() << case_.text() << ": wrote behind row " << i;
    }
    EXPECT_EQ(wrong, 0) << case_.text();
  }

 private:
  static std::vector<std::uint16_t> rounded(const std::vector<float>& x) {
    std::vector<std::uint16_t> bits(x.size());
    const auto count = static_cast<std::int64_t>(x.size());
    cpu::convert_to_bf16(x.data(), 1, count, count, bits.data());
    return bits;
  }
  std::vector<float> filled(std::int64_t rows, std::int64_t cols, std::uint64_t key) const {
    const std::int64_t stride = cols + case_.padding;
    std::vector<float> x(static_cast<std::size_t>(rows * stride), std::nanf(""));
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c) {
        const std::uint64_t word = derive_key(key, static_cast<std::uint64_t>(r * cols + c));
        x[r * stride + c] = 2 * uniform_from(static_cast<std::uint32_t>(word)) - 1;
      }
    return x;
  }
  Case case_;
  std::vector<float> a_, b_, initial_, bias_;
};

class GemmKernel : public testing_support::EveryBackend {};

/// What only the CPU promises.
testing_support::HostKernels& on_cpu() {
  static testing_support::HostKernels kernels(cpu_backend(), 0);
  return kernels;
}

bool same_bits(const std::vector<float>& x, const std::vector<float>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

TEST_P(GemmKernel, EveryCombinationEqualsTheLoops) {
  const std::int64_t sizes[][3] = {{1, 1, 1},    {1, 67, 129}, {3, 5, 7},
                                   {17, 33, 65}, {64, 64, 64}, {31, 1, 257},
                                   {70, 129, 3}, {5, 300, 40}, {130, 48, 515}};
  for (const auto& [m, n, k] : sizes) {
    if (emulated() && m * n * k > 200) continue;
    for (int bits = 0; bits < 64; ++bits) {
      const Case c{m,
                   n,
                   k,
                   (bits & 1) != 0,
                   (bits & 2) != 0,
                   (bits & 4) != 0,
                   (bits & 8) != 0,
                   (bits & 16) != 0,
                   (bits & 32) ? 5 : 0};
      const Problem problem(c);
      problem.expect_right(problem.run(kernels()));
    }
  }
}

TEST_P(GemmKernel, LongSumsOfAWeightGradient) {
  for (const bool bf16 : {false, true}) {
    const Problem problem(
        {.m = 40, .n = 48, .k = 9001, .trans_a = true, .accumulate = true, .bf16 = bf16});
    problem.expect_right(problem.run(kernels()));
  }
}

TEST_P(GemmKernel, BlocksOfALargeProductJoin) {
  for (const bool trans_a : {false, true})
    for (const bool trans_b : {false, true}) {  // few rows and many columns
      const Problem wide({.m = 3,
                          .n = 2900,
                          .k = 700,
                          .trans_a = trans_a,
                          .trans_b = trans_b,
                          .bias = true,
                          .bf16 = true,
                          .padding = 3});
      wide.expect_right(wide.run(kernels()));
    }
  const Problem tall(
      {.m = 4200, .n = 5, .k = 4096, .trans_a = true, .accumulate = true, .bf16 = true});
  tall.expect_right(tall.run(kernels()), 101);
}

TEST_P(GemmKernel, OperandsRoundedBeforehandGiveTheSameProduct) {
  const std::int64_t sizes[][3] = {{1, 67, 129}, {2, 130, 770}, {4, 300, 40}, {15, 90, 768},
                                   {64, 64, 64}, {13, 48, 515}, {5, 9, 9001}, {7, 420, 700}};
  for (const auto& [m, n, k] : sizes) {
    if (emulated() && m > 1) continue;
    for (int bits = 0; bits < 32; ++bits) {
      const Case c{m,
                   n,
                   k,
                   (bits & 1) != 0,
                   (bits & 2) != 0,
                   (bits & 4) != 0,
                   (bits & 8) != 0,
                   true,
                   (bits & 16) ? 5 : 0};
      const Problem problem(c);
      const auto expected = problem.run(kernels());
      const bool one_dense_block =
          on_host() && c.padding == 0 && std::max(m, k) <= 4096 && n * k < (1 << 18);
      for (int which = 1; which < 4; ++which) {
        const auto found = problem.run(kernels(), (which & 1) != 0, (which & 2) != 0);
        if (one_dense_block)
          EXPECT_TRUE(same_bits(expected, found)) << c.text() << " rounded " << which;
        else
          problem.expect_right(found);
      }
    }
  }
}

TEST_P(GemmKernel, WithoutTermsLeavesBiasAndOldValues) {
  for (int bits = 0; bits < 4; ++bits) {
    const Problem problem(
        {.m = 3, .n = 4, .k = 0, .accumulate = (bits & 1) != 0, .bias = (bits & 2) != 0});
    problem.expect_right(problem.run(kernels()));
  }
  kernels().gemm({.m = 0, .n = 4, .k = 4});
  kernels().gemm({.m = 4, .n = 0, .k = 4});
}

TEST(CpuGemmKernel, SameBitsEveryTimeAndFromEveryThread) {
  for (int bits = 0; bits < 16; ++bits) {
    const Case c{.m = 123,
                 .n = 257,
                 .k = 515,
                 .trans_a = (bits & 1) != 0,
                 .trans_b = (bits & 2) != 0,
                 .accumulate = (bits & 4) != 0,
                 .bf16 = (bits & 8) != 0};
    const Problem problem(c);
    omp_set_num_threads(2);
    const auto first = problem.run(on_cpu());
    for (int repeat = 0; repeat < 3; ++repeat)
      EXPECT_TRUE(same_bits(first, problem.run(on_cpu()))) << c.text();
    // Two callers at once share the compiled product, never its scratch.
    std::vector<float> results[2];
    std::thread callers[2];
    for (int t = 0; t < 2; ++t)
      callers[t] = std::thread([&, t] {
        omp_set_num_threads(2);
        for (int repeat = 0; repeat < 3; ++repeat) results[t] = problem.run(on_cpu());
      });
    for (auto& caller : callers) caller.join();
    EXPECT_TRUE(same_bits(first, results[0])) << c.text();
    EXPECT_TRUE(same_bits(first, results[1])) << c.text();
  }
}

TEST(CpuGemmKernel, AddressesDoNotChangeTheBits) {
  for (int bits = 0; bits < 16; ++bits) {
    const Case c{.m = 50,
                 .n = 99,
                 .k = 77,
                 .trans_a = (bits & 1) != 0,
                 .trans_b = (bits & 2) != 0,
                 .accumulate = (bits & 4) != 0,
                 .bf16 = (bits & 8) != 0};
    const Problem problem(c);
    const auto first = problem.run(on_cpu());
    const std::vector<float> shift_the_heap(1003);
    const Problem again(c);
    EXPECT_TRUE(same_bits(first, again.run(on_cpu()))) << c.text();
  }
}

TEST_P(GemmKernel, NanAndInfinityReachExactlyTheirRowsAndColumns) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const bool bf16 : {false, true})
    for (const bool trans_a : {false, true})
      for (const float bad : {std::nanf(""), infinity}) {
        const std::int64_t m = 33, n = 40, k = 70;
        Problem problem({.m = m, .n = n, .k = k, .trans_a = trans_a, .bf16 = bf16});
        problem.a()[trans_a ? 5 * m + 7 : 7 * k + 5] = bad;  // op(a)[7, 5]
        const auto c = problem.run(kernels());
        for (std::int64_t i = 0; i < m; ++i)
          for (std::int64_t j = 0; j < n; ++j) {
            const float value = c[i * n + j];
            const bool bad_row = i == 7;
            EXPECT_EQ(std::isfinite(value), !bad_row) << i << ", " << j;
            EXPECT_EQ(std::isnan(value), bad_row && std::isnan(bad)) << i << ", " << j;
          }
      }
}

TEST(CpuGemmKernel, Bf16RoundsToNearestEven) {
  std::vector<std::uint32_t> bits;
  for (std::uint32_t i = 0; i < 200000; ++i) bits.push_back(philox(3, 0, i)[0]);
  for (const std::uint32_t tail : {0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu, 0u})
    for (const std::uint32_t head :
         {0x3F80u, 0x3F81u, 0x0000u, 0x8000u, 0x0001u, 0x7F7Fu, 0x7F80u, 0xFF80u, 0x7FFFu, 0xFFFFu})
      bits.push_back(head << 16 | tail);
  std::vector<float> from(bits.size()), to(bits.size());
  std::memcpy(from.data(), bits.data(), bits.size() * sizeof(float));
  std::vector<std::uint16_t> halves(bits.size());
  const auto count = static_cast<std::int64_t>(bits.size());
  cpu::convert_to_bf16(from.data(), 1, count, count, halves.data());
  cpu::round_to_bf16(from.data(), 1, count, count, to.data());
  std::vector<float> widened(bits.size());
  cpu::convert_from_bf16(halves.data(), 1, count, count, widened.data());
  for (std::int64_t i = 0; i < count; ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(to[i]), std::uint32_t{halves[i]} << 16)
        << std::hex << bits[i];
    ASSERT_EQ(std::bit_cast<std::uint32_t>(widened[i]), std::uint32_t{halves[i]} << 16);
    if (std::isnan(from[i])) {
      ASSERT_TRUE(std::isnan(to[i])) << std::hex << bits[i];
    } else if (std::isinf(from[i]) || std::abs(from[i]) > 0x1.fep127f) {
      // Beyond the largest bfloat16 the halfway point decides.
      ASSERT_EQ(std::isinf(to[i]), (bits[i] & 0x7FFFFFFFu) >= 0x7F7F8000u) << std::hex << bits[i];
    } else {
      ASSERT_EQ(static_cast<double>(to[i]), nearest_bf16(from[i])) << std::hex << bits[i];
    }
  }
}

TEST(CpuGemmKernel, ReturnsItsScratch) {
  const std::int64_t before = cpu_device().bytes_in_use();
  for (const bool bf16 : {false, true}) {
    const Problem problem(
        {.m = 200, .n = 300, .k = 400, .trans_a = true, .accumulate = true, .bf16 = bf16});
    problem.run(on_cpu());
  }
  EXPECT_EQ(cpu_device().bytes_in_use(), before);
}

INSTANTIATE_TEST_SUITE_P(On, GemmKernel, testing::ValuesIn(testing_support::kernel_backends(false)),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace longspan::model
