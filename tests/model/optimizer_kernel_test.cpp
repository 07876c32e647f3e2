#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "support/kernel_backend.hpp"
#include "support/reference.hpp"

namespace longspan::model {
namespace {

using testing_support::Doubles;
using testing_support::largest_error;
using testing_support::random_floats;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class OptimizerKernel : public testing_support::EveryBackend {};
class ReductionKernel : public testing_support::EveryBackend {};

TEST_P(OptimizerKernel, AdamwEqualsReferenceOverSeveralSteps) {
  for (const std::int64_t count : {1, 15, 1000, 70001}) {
    std::vector<float> w = random_floats(count, 1), m(w.size()), v(w.size());
    for (int step = 1; step <= 3; ++step) {
      std::vector<float> g = random_floats(count, 10 + static_cast<std::uint64_t>(step), 0.01f);
      AdamwArgs args{count, w.data(), g.data(), m.data(), v.data(),
                     1e-2f, 0.9f,     0.95f,    1e-8f,    0.1f};
      args.correction1 = 1.0f - std::pow(0.9f, static_cast<float>(step));
      args.correction2 = 1.0f - std::pow(0.95f, static_cast<float>(step));
      args.gradient_scale = 0.5f;
      const auto expected = testing_support::adamw(args);
      kernels().adamw(args);
      EXPECT_LT(largest_error(w, expected.weight, 1e-2), 1e-6);
      EXPECT_LT(largest_error(m, expected.exp_avg, 1e-3), 1e-6);
      EXPECT_LT(largest_error(v, expected.exp_avg_sq, 1e-9), 1e-6);
    }
  }
}

TEST_P(OptimizerKernel, AZeroGradientOnlyDecays) {
  std::vector<float> w = {2.0f, -4.0f, 8.0f}, g(3), m(3), v(3);
  kernels().adamw({3, w.data(), g.data(), m.data(), v.data(), 0.5f, 0.9f, 0.99f, 1e-8f, 0.5f, 0.1f,
                   0.01f, 1.0f});
  EXPECT_EQ(w, (std::vector<float>{1.5f, -3.0f, 6.0f}));
}

TEST_P(OptimizerKernel, ThreadsDoNotMatter) {
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 2}) {
    omp_set_num_threads(threads);
    std::vector<float> w = random_floats(50007, 1), g = random_floats(50007, 2), m(w.size()),
                       v(w.size());
    kernels().adamw({50007, w.data(), g.data(), m.data(), v.data(), 1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f,
                     0.1f, 0.05f, 1.0f});
    results.push_back(w);
  }
  omp_set_num_threads(1);
  EXPECT_EQ(results[0], results[1]);
}

TEST_P(ReductionKernel, SumOfSquaresInDouble) {
  for (const std::int64_t count : {0, 1, 7, 63, 65536, 65537, 300001}) {
    const std::vector<float> x = random_floats(count, 3, 1.0f, 0.5f);
    const double expected = testing_support::sum_of_squares(count, x.data());
    EXPECT_NEAR(kernels().sum_of_squares(count, x.data()), expected, 1e-13 * expected) << count;
  }
  const std::vector<float> huge(100, 1e30f);
  EXPECT_NEAR(kernels().sum_of_squares(100, huge.data()) / 1e62, 1.0, 1e-6);
}

TEST_P(ReductionKernel, SumOfSquaresHasOneOrder) {
  const std::vector<float> x = random_floats(400003, 4);
  omp_set_num_threads(1);
  const double one = kernels().sum_of_squares(400003, x.data());
  for (const int threads : {2, 3}) {
    omp_set_num_threads(threads);
    EXPECT_EQ(kernels().sum_of_squares(400003, x.data()), one);
  }
  omp_set_num_threads(1);
}

TEST_P(ReductionKernel, SumOfSquaresPropagates) {
  for (const std::size_t where : {0u, 31u, 65535u, 70002u}) {
    std::vector<float> x(70003, 1.0f);
    x[where] = kNaN;
    EXPECT_TRUE(std::isnan(kernels().sum_of_squares(70003, x.data())));
    x[where] = -kInfinity;
    EXPECT_EQ(kernels().sum_of_squares(70003, x.data()), std::numeric_limits<double>::infinity());
  }
}

TEST_P(ReductionKernel, Add) {
  for (const std::int64_t count : {1, 33, 40003}) {
    const std::vector<float> x = random_floats(count, 5), before = random_floats(count, 6);
    std::vector<float> y = before;
    kernels().add(count, x.data(), y.data());
    for (std::size_t i = 0; i < y.size(); ++i) ASSERT_EQ(y[i], x[i] + before[i]);
  }
}

TEST_P(ReductionKernel, AddRowsLeavesGapsAlone) {
  for (const auto& [cols, x_row, y_row] :
       {std::array<std::int64_t, 3>{5, 7, 9}, {64, 64, 68}, {36, 40, 36}}) {
    const std::int64_t rows = 13;
    const std::vector<float> x = random_floats(rows * x_row, 5),
                             before = random_floats(rows * y_row, 6);
    std::vector<float> y = before;
    kernels().add_rows(rows, cols, x.data(), x_row, y.data(), y_row);
    for (std::int64_t i = 0; i < rows * y_row; ++i) {
      const std::int64_t row = i / y_row, col = i % y_row;
      const float added = col < cols ? x[static_cast<std::size_t>(row * x_row + col)] : 0.0f;
      ASSERT_EQ(y[static_cast<std::size_t>(i)], before[static_cast<std::size_t>(i)] + added) << i;
    }
  }
}

TEST_P(ReductionKernel, ColumnSums) {
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{1, 1},
                                   {3, 5},
                                   {16, 17},
                                   {37, 129},
                                   {3000, 33},
                                   {700, 260},
                                   {5, 128},
                                   {3000, 132},
                                   {700, 1025}}) {
    const std::vector<float> x = random_floats(rows * cols, 7);
    const std::vector<float> before = random_floats(cols, 8);
    Doubles expected = testing_support::column_sums(rows, cols, x.data());
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
    std::vector<std::vector<float>> results;
    for (const int threads : {1, 2}) {
      omp_set_num_threads(threads);
      results.push_back(before);
      kernels().add_column_sums(rows, cols, x.data(), results.back().data());
    }
    omp_set_num_threads(1);
    EXPECT_LT(largest_error(results[0], expected), 1e-5) << rows << " x " << cols;
    EXPECT_EQ(results[0], results[1]) << "the order depends on the number of rows alone";
  }
}

TEST_P(ReductionKernel, RoundToBf16) {
  // 1 + k/256: a tie where k is odd.
  std::vector<float> x = {1.0f,
                          1.0f + 1 / 256.0f,
                          1.0f + 3 / 256.0f,
                          1.0f + 1.01f / 256.0f,
                          -1.0f - 1 / 256.0f,
                          -0.0f,
                          kInfinity,
                          -kInfinity,
                          3.4e38f,
                          1e-40f,
                          0.1f};
  const std::vector<float> expected = {
      1.0f,      1.0f,       1.0f + 4 / 256.0f, 1.0f + 2 / 256.0f, -1.0f,         -0.0f,
      kInfinity, -kInfinity, kInfinity,         1.00103e-40f,      0.10009765625f};
  kernels().round_to_bf16(static_cast<std::int64_t>(x.size()), x.data());
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (i == 9) continue;
    EXPECT_EQ(std::bit_cast<std::uint32_t>(x[i]), std::bit_cast<std::uint32_t>(expected[i])) << i;
  }
  EXPECT_NEAR(x[9], 1e-40f, 4.6e-41f) << "subnormal";

  std::vector<float> nan;
  for (const std::uint32_t bits :
       {0x7FFFFFFFu, 0x7F800001u, 0xFFFFFFFFu, 0xFF800001u, 0x7FC00000u}) {
    nan.push_back(std::bit_cast<float>(bits));
  }
  kernels().round_to_bf16(5, nan.data());
  for (const float v : nan)
    EXPECT_TRUE(std::isnan(v) && (std::bit_cast<std::uint32_t>(v) & 0xFFFFu) == 0);

  std::vector<float> many = random_floats(40001, 9);
  const std::vector<float> before = many;
  kernels().round_to_bf16(40001, many.data());
  for (std::size_t i = 0; i < many.size(); ++i) {
    ASSERT_LE(std::abs(many[i] - before[i]), std::abs(before[i]) / 256);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(many[i]) & 0xFFFFu, 0u);
  }
}

TEST_P(ReductionKernel, Bf16BitsAreTheUpperHalfOfTheRoundedNumber) {
  for (const auto& [rows, cols, x_row] : {std::array<std::int64_t, 3>{1, 4099, 4099},
                                          {7, 5, 5},
                                          {9, 33, 40},
                                          {6, 64, 72},
                                          {0, 4, 4}}) {
    std::vector<float> x = random_floats(std::max<std::int64_t>(1, rows * x_row), 11);
    x[0] = std::bit_cast<float>(0x7F800001u);  // a NaN whose upper half is an infinity's
    std::vector<float> rounded = x;
    kernels().round_to_bf16(static_cast<std::int64_t>(rounded.size()), rounded.data());
    std::vector<std::uint16_t> bits(static_cast<std::size_t>(rows * cols), 0x1234u);
    kernels().to_bf16(rows, cols, x.data(), x_row, bits.data());
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      const auto at = static_cast<std::size_t>(i / cols * x_row + i % cols);
      ASSERT_EQ(std::uint32_t{bits[static_cast<std::size_t>(i)]} << 16,
                std::bit_cast<std::uint32_t>(rounded[at]))
          << i;
    }
    std::vector<float> back(bits.size(), kNaN);
    kernels().from_bf16(rows * cols, bits.data(), back.data());
    for (std::size_t i = 0; i < back.size(); ++i)
      ASSERT_EQ(std::bit_cast<std::uint32_t>(back[i]), std::uint32_t{bits[i]} << 16) << i;
  }
}

EVERY_BACKEND(OptimizerKernel);
EVERY_BACKEND(ReductionKernel);

}  // namespace
}  // namespace longspan::model
