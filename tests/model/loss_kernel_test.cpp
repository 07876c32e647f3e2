#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/kernel_backend.hpp"
#include "support/reference.hpp"

namespace longspan::model {
namespace {

using testing_support::largest_error;
using testing_support::random_floats;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class LossKernel : public testing_support::EveryBackend {};

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
  for (const Case& c :
       {Case{4, 1, 1, 1.0f}, Case{5, 13, 16, 1.0f}, Case{7, 2049, 2055, 3.0f},
        Case{3, 50257, 50304, 2.0f}, Case{4, 5000, 5000, 60.0f}, Case{3, 70001, 70004, 2.0f}}) {
    SCOPED_TRACE(testing::Message() << c.rows << " x " << c.vocabulary << " scale " << c.scale);
    Data data(c.rows, c.vocabulary, c.row_stride, c.scale);
    // A padded column must not count, whatever stands in it.
    if (c.row_stride > c.vocabulary) data.logits[static_cast<std::size_t>(c.row_stride - 1)] = kNaN;
    const auto expected = testing_support::cross_entropy(data.args);

    const std::vector<float> before = data.logits;
    data.args.backward = false;
    kernels().cross_entropy(data.args);
    EXPECT_LT(largest_error(data.losses, expected.losses), 5e-7);
    EXPECT_TRUE(std::equal(before.begin(), before.end(), data.logits.begin(), [](float a, float b) {
      return a == b || (std::isnan(a) && std::isnan(b));
    })) << "without backward, logits stay";

    const std::vector<float> losses = data.losses;
    data.args.backward = true;
    kernels().cross_entropy(data.args);
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
  kernels().cross_entropy(data.args);
  EXPECT_LT(largest_error(data.losses, expected.losses), 5e-7);
  EXPECT_LT(largest_error(data.logits, expected.gradient, 1e-6), 2e-6);
  EXPECT_EQ(data.logits[17], 0.0f);
}

TEST_P(LossKernel, HugeLogitsDoNotOverflow) {
  Data data(1, 300, 300, 1.0f);
  for (float& logit : data.logits) logit = logit * 1e37f;
  const auto expected = testing_support::cross_entropy(data.args);
  kernels().cross_entropy(data.args);
  EXPECT_TRUE(std::isfinite(data.losses[0]));
  EXPECT_LT(largest_error(data.losses, expected.losses), 5e-7);
  EXPECT_LT(largest_error(data.logits, expected.gradient), 1e-6);
}

TEST_P(LossKernel, NaNAndInfinityPropagate) {
  for (const float bad : {kNaN, kInfinity}) {
    for (const std::size_t where : {0u, 15u, 2047u, 2048u, 4999u}) {
      Data data(3, 5000, 5000, 1.0f);
      data.logits[where] = bad;
      kernels().cross_entropy(data.args);
      EXPECT_TRUE(std::isnan(data.losses[0])) << bad << " at " << where;
      EXPECT_TRUE(std::isnan(data.logits[where])) << bad << " at " << where;
      EXPECT_TRUE(std::isfinite(data.losses[2])) << "a row by itself";
    }
  }
  Data nothing(1, 40, 40, 1.0f);
  std::fill(nothing.logits.begin(), nothing.logits.end(), -kInfinity);
  kernels().cross_entropy(nothing.args);
  EXPECT_TRUE(std::isnan(nothing.losses[0]));
}

/// Ranks that share the vocabulary: statistics of the parts, combined, make the loss, and each
/// part's gradient is that of the whole.
TEST_P(LossKernel, PartsOfTheVocabularyMakeTheWhole) {
  constexpr std::int64_t kRows = 13, kPart = 701, kParts = 3, kAll = kPart * kParts;
  for (const float scale : {1.0f, 60.0f}) {
    Data data(kRows, kAll, kAll, scale);
    std::fill_n(data.logits.begin() + 5 * kAll, kPart, -kInfinity);  // nothing in a whole part
    data.targets[5] = kAll - 1;
    const auto expected = testing_support::cross_entropy(data.args);
    struct Part {
      std::vector<float> logits, statistics = std::vector<float>(3 * kRows, 77.0f);
      std::vector<std::int32_t> targets;
      CrossEntropyArgs args;
    };
    std::vector<Part> parts(kParts);
    for (std::int64_t p = 0; p < kParts; ++p) {
      Part& part = parts[static_cast<std::size_t>(p)];
      for (std::int64_t row = 0; row < kRows; ++row) {
        const auto from = data.logits.begin() + row * kAll + p * kPart;
        part.logits.insert(part.logits.end(), from, from + kPart);
        const std::int64_t target = data.targets[static_cast<std::size_t>(row)],
                           here = target - p * kPart;
        part.targets.push_back(static_cast<std::int32_t>(target < 0                  ? -1
                                                         : here >= 0 && here < kPart ? here
                                                                                     : kPart));
      }
      part.args = {kRows, kPart, kPart, part.logits.data(), part.targets.data()};
      part.args.gradient_scale = data.args.gradient_scale;
      part.args.pass = CrossEntropyPass::kStatistics, part.args.statistics = part.statistics.data();
      const auto before = part.logits;
      kernels().cross_entropy(part.args);
      EXPECT_EQ(part.logits, before);
    }
    for (std::size_t row = 0; row < kRows; ++row) {
      double most = -kInfinity, sum = 0, target = 0;
      for (const Part& p : parts) most = std::max<double>(most, p.statistics[3 * row]);
      for (const Part& p : parts) {
        sum += p.statistics[3 * row + 1] * std::exp(p.statistics[3 * row] - most);
        target += p.statistics[3 * row + 2];
      }
      if (data.targets[row] < 0)
        EXPECT_EQ(sum, 0.0);  // three times (0, 0, 0)
      else
        EXPECT_NEAR(std::log(sum) + most - target, expected.losses[row],
                    5e-7 * std::max(1.0, expected.losses[row]));
      for (Part& p : parts)
        p.statistics[3 * row] = static_cast<float>(most),
                         p.statistics[3 * row + 1] = static_cast<float>(sum);
    }
    std::vector<float> gradient(kRows * kAll);
    for (std::int64_t p = 0; p < kParts; ++p) {
      Part& part = parts[static_cast<std::size_t>(p)];
      part.args.pass = CrossEntropyPass::kGradient;
      kernels().cross_entropy(part.args);
      for (std::int64_t row = 0; row < kRows; ++row)
        std::copy_n(part.logits.begin() + row * kPart, kPart,
                    gradient.begin() + row * kAll + p * kPart);
    }
    EXPECT_LT(largest_error(gradient, expected.gradient, 1e-6), 2e-6);
  }
}

TEST_P(LossKernel, ThreadsDoNotMatter) {
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 2}) {
    omp_set_num_threads(threads);
    Data data(30, 3001, 3008, 2.0f);
    kernels().cross_entropy(data.args);
    data.logits.insert(data.logits.end(), data.losses.begin(), data.losses.end());
    results.push_back(data.logits);
  }
  omp_set_num_threads(1);
  EXPECT_EQ(results[0], results[1]);
}

EVERY_BACKEND(LossKernel);

}  // namespace
}  // namespace longspan::model
