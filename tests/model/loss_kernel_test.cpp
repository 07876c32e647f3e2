#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "model/kernels/cpu/kernels_cpu.hpp"
#include "support/instruction_sets.hpp"
#include "support/reference.hpp"

namespace longspan::model {
namespace {

using testing_support::largest_error;
using testing_support::random_floats;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class LossKernel : public testing_support::EveryInstructionSet {};

struct Data {
  Data(std::int64_t rows, std::int64_t vocabulary, std::int64_t row_stride, float scale)
      : logits(random_floats(rows * row_stride, 1, scale)),
        losses(static_cast<std::size_t>(rows), 77.0f) {
    for (std::int64_t row = 0; row < rows; ++row) {
      targets.push_back(row % 3 == 1 ? -1 : static_cast<std::int32_t>(row * 7919 % vocabulary));
    }
    targets[0] = static_cast<std::int32_t>(vocabulary - 1);
    args = {rows,           vocabulary,    row_stride, logits.data(),
            targets.data(), losses.data(), true,       0.125f};
  }
  std::vector<float> logits, losses;
  std::vector<std::int32_t> targets;
  CrossEntropyArgs args;
};

TEST_P(LossKernel, EqualsReference) {
  struct Case {
    std::int64_t rows, vocabulary, row_stride;
    float scale;
  };
  for (const Case& c : {Case{4, 1, 1, 1.0f}, Case{5, 13, 16, 1.0f}, Case{7, 2049, 2055, 3.0f},
                        Case{3, 50257, 50304, 2.0f}, Case{4, 5000, 5000, 60.0f}}) {
    SCOPED_TRACE(testing::Message() << c.rows << " x " << c.vocabulary << " scale " << c.scale);
    Data data(c.rows, c.vocabulary, c.row_stride, c.scale);
    // A padded column must not count, whatever stands in it.
    if (c.row_stride > c.vocabulary) data.logits[static_cast<std::size_t>(c.row_stride - 1)] = kNaN;
    const auto expected = testing_support::cross_entropy(data.args);

    const std::vector<float> before = data.logits;
    data.args.backward = false;
    cpu::cross_entropy(data.args);
    EXPECT_LT(largest_error(data.losses, expected.losses), 5e-7);
    EXPECT_TRUE(std::equal(before.begin(), before.end(), data.logits.begin(), [](float a, float b) {
      return a == b || (std::isnan(a) && std::isnan(b));
    })) << "without backward, logits stay";

    const std::vector<float> losses = data.losses;
    data.args.backward = true;
    cpu::cross_entropy(data.args);
    EXPECT_EQ(data.losses, losses);
    // Relative to gradients of 1e-6: small probabilities keep their digits.
    EXPECT_LT(largest_error(data.logits, expected.gradient, 1e-6), 2e-6);
    for (std::int64_t row = 0; row < c.rows; ++row) {
      const float* gradient = data.logits.data() + row * c.row_stride;
      double sum = 0;
      for (std::int64_t i = 0; i < c.vocabulary; ++i) sum += gradient[i];
      EXPECT_NEAR(sum, 0.0, 1e-6);
      EXPECT_TRUE(std::all_of(gradient + c.vocabulary, gradient + c.row_stride,
                              [](float g) { return g == 0.0f; }));
      if (data.targets[static_cast<std::size_t>(row)] >= 0) continue;
      EXPECT_EQ(losses[static_cast<std::size_t>(row)], 0.0f);
      EXPECT_TRUE(
          std::all_of(gradient, gradient + c.row_stride, [](float g) { return g == 0.0f; }));
    }
  }
}

TEST_P(LossKernel, LogitsOfMinusInfinityAreImpossibleTokens) {
  Data data(1, 5000, 5000, 1.0f);
  std::fill(data.logits.begin(), data.logits.begin() + 4100,
            -kInfinity);  // more than one whole piece
  const auto expected = testing_support::cross_entropy(data.args);
  cpu::cross_entropy(data.args);
  EXPECT_LT(largest_error(data.losses, expected.losses), 5e-7);
  EXPECT_LT(largest_error(data.logits, expected.gradient, 1e-6), 2e-6);
  EXPECT_EQ(data.logits[17], 0.0f);
}

TEST_P(LossKernel, HugeLogitsDoNotOverflow) {
  Data data(1, 300, 300, 1.0f);
  for (float& logit : data.logits) logit = logit * 1e37f;
  const auto expected = testing_support::cross_entropy(data.args);
  cpu::cross_entropy(data.args);
  EXPECT_TRUE(std::isfinite(data.losses[0]));
  EXPECT_LT(largest_error(data.losses, expected.losses), 5e-7);
  EXPECT_LT(largest_error(data.logits, expected.gradient), 1e-6);
}

TEST_P(LossKernel, NaNAndInfinityPropagate) {
  for (const float bad : {kNaN, kInfinity}) {
    for (const std::size_t where : {0u, 15u, 2047u, 2048u, 4999u}) {
      Data data(3, 5000, 5000, 1.0f);
      data.logits[where] = bad;
      cpu::cross_entropy(data.args);
      EXPECT_TRUE(std::isnan(data.losses[0])) << bad << " at " << where;
      EXPECT_TRUE(std::isnan(data.logits[where])) << bad << " at " << where;
      EXPECT_TRUE(std::isfinite(data.losses[2])) << "a row by itself";
    }
  }
  Data nothing(1, 40, 40, 1.0f);
  std::fill(nothing.logits.begin(), nothing.logits.end(), -kInfinity);
  cpu::cross_entropy(nothing.args);
  EXPECT_TRUE(std::isnan(nothing.losses[0]));
}

TEST_P(LossKernel, ThreadsDoNotMatter) {
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 2}) {
    omp_set_num_threads(threads);
    Data data(30, 3001, 3008, 2.0f);
    cpu::cross_entropy(data.args);
    data.logits.insert(data.logits.end(), data.losses.begin(), data.losses.end());
    results.push_back(data.logits);
  }
  omp_set_num_threads(1);
  EXPECT_EQ(results[0], results[1]);
}

EVERY_INSTRUCTION_SET(LossKernel);

}  // namespace
}  // namespace longspan::model
