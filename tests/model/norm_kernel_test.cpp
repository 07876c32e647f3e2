#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/kernel_backend.hpp"
#include "support/reference.hpp"

namespace longspan::model {
namespace {

namespace reference = testing_support;
using testing_support::largest_error;
using testing_support::random_floats;

class NormKernel : public testing_support::EveryBackend {};

struct Case {
  std::int64_t rows, width;
  bool rms, bias;
};
const Case kCases[] = {{1, 1, false, true},    {3, 7, false, true},    {5, 16, true, false},
                       {33, 65, false, false}, {40, 200, false, true}, {17, 1027, true, false},
                       {70, 768, true, true},  {5, 2052, false, true}, {3, 6000, true, false},
                       {4, 8188, false, true}, {3, 8200, false, true}, {2, 33000, true, true}};

struct Data {
  explicit Data(const Case& c, float shift = 0.3f)
      : x(random_floats(c.rows * c.width, 1, 2.0f, shift)),
        dy(random_floats(c.rows * c.width, 2)),
        before(random_floats(c.rows * c.width, 3)),
        weight(random_floats(c.width, 4, 0.5f, 1.0f)),
        bias(random_floats(c.width, 5)),
        mean(static_cast<std::size_t>(c.rows)),
        rstd(static_cast<std::size_t>(c.rows)) {
    forward = {
        c.rows,  c.width, c.rms,  1e-5f, x.data(), weight.data(), c.bias ? bias.data() : nullptr,
        nullptr, nullptr, nullptr};
    backward.rows = c.rows, backward.width = c.width, backward.rms = c.rms;
    backward.dy = dy.data(), backward.x = x.data(), backward.weight = weight.data();
    backward.mean = mean.data(), backward.rstd = rstd.data();
  }
  /// Fills mean and rstd as the forward pass does.
  void save_statistics(testing_support::HostKernels& kernels) {
    std::vector<float> y(x.size());
    NormForwardArgs args = forward;
    args.y = y.data(), args.mean = mean.data(), args.rstd = rstd.data();
    kernels.norm_forward(args);
  }
  std::vector<float> x, dy, before, weight, bias, mean, rstd;
  NormForwardArgs forward;
  NormBackwardArgs backward;
};

TEST_P(NormKernel, ForwardEqualsReference) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << c.rows << " x " << c.width << " rms " << c.rms);
    Data data(c);
    const auto expected = reference::norm_forward(data.forward);
    std::vector<float> y(data.x.size() + 1, 77.0f);
    NormForwardArgs args = data.forward;
    args.y = y.data(), args.mean = data.mean.data(), args.rstd = data.rstd.data();
    kernels().norm_forward(args);
    EXPECT_LT(largest_error(y.data(), expected.y), 2e-6);
    EXPECT_EQ(y.back(), 77.0f) << "written past the end";
    if (!c.rms) {
      EXPECT_LT(largest_error(data.mean, expected.mean), 1e-6);
    }
    EXPECT_LT(largest_error(data.rstd, expected.rstd, 1e-3), 1e-6);

    // Evaluation in place: no statistics, y = x.
    std::vector<float> in_place = data.x;
    args.x = args.y = in_place.data();
    args.mean = args.rstd = nullptr;
    kernels().norm_forward(args);
    y.pop_back();
    EXPECT_EQ(in_place, y);
  }
}

/// Both steps in one pass against the double reference, and against the two operations bit for bit:
/// recomputing may call either.
TEST_P(NormKernel, ResidualAndNormAreTheTwoStepsInOne) {
  for (const Case& c : kCases) {
    for (const float probability : {0.0f, 0.25f}) {
      SCOPED_TRACE(testing::Message()
                   << c.rows << " x " << c.width << " rms " << c.rms << " dropout " << probability);
      Data data(c);
      const std::vector<float> branch = random_floats(c.rows * c.width, 6);
      const std::int64_t tokens = (c.rows + 1) / 2;
      const std::vector<std::int64_t> sequences = {5, (std::int64_t{3} << 32) + 7};
      std::vector<std::int32_t> positions(static_cast<std::size_t>(tokens));
      for (std::size_t i = 0; i < positions.size(); ++i)
        positions[i] = static_cast<std::int32_t>(3 * i);
      ResidualForwardArgs residual{c.rows, c.width, data.x.data(), branch.data(), nullptr, {}};
      if (probability > 0.0f)
        residual.dropout = {probability, 77, sequences.data(), positions.data(), tokens};
      const auto expected_sum = reference::residual_forward(residual);

      std::vector<float> sum(data.x.size()), y(data.x.size()), apart_sum = sum, apart_y = y;
      std::vector<float> mean = data.mean, rstd = data.rstd;
      residual.y = apart_sum.data();
      NormForwardArgs norm = data.forward;
      norm.x = apart_sum.data(), norm.y = apart_y.data();
      norm.mean = data.mean.data(), norm.rstd = data.rstd.data();
      kernels().residual_forward(residual);
      kernels().norm_forward(norm);
      const auto expected = reference::norm_forward(norm);

      residual.y = sum.data(), norm.x = sum.data(), norm.y = y.data();
      norm.mean = mean.data(), norm.rstd = rstd.data();
      kernels().residual_norm_forward({residual, norm});
      EXPECT_LT(largest_error(sum, expected_sum), 3e-7);
      // One after the other, as the scalar set does, 33000 squares sum up to within 3e-6.
      EXPECT_LT(largest_error(y, expected.y), c.width > 16384 ? 4e-6 : 2e-6);
      EXPECT_EQ(sum, apart_sum);
      EXPECT_EQ(y, apart_y);
      EXPECT_EQ(mean, data.mean);
      EXPECT_EQ(rstd, data.rstd);

      // The sum in the place of either summand, as a block and a decoder call it.
      for (const bool over_branch : {true, false}) {
        std::vector<float> in_place = over_branch ? branch : data.x, again(y.size());
        ResidualForwardArgs over = residual;
        (over_branch ? over.r : over.x) = in_place.data();
        over.y = in_place.data();
        norm.x = in_place.data(), norm.y = again.data(), norm.mean = norm.rstd = nullptr;
        kernels().residual_norm_forward({over, norm});
        EXPECT_EQ(in_place, sum) << over_branch;
        EXPECT_EQ(again, y) << over_branch;
        norm.mean = mean.data(), norm.rstd = rstd.data();
      }
    }
  }
}

TEST_P(NormKernel, SurvivesRowsFarFromZero) {
  Data data({4, 777, false, true}, 3000.0f);
  const auto expected = reference::norm_forward(data.forward);
  NormForwardArgs args = data.forward;
  std::vector<float> y(data.x.size());
  args.y = y.data();
  kernels().norm_forward(args);
  // The mean itself is known to 1e-4. One pass (mean of squares minus square of mean) would be
  // wrong by 10 %.
  EXPECT_LT(largest_error(y, expected.y), 1e-3);
}

TEST_P(NormKernel, NeitherOverflowsNorHidesNaN) {
  for (const bool rms : {false, true}) {
    Data data({3, 37, rms, false});
    for (int i = 0; i < 37; ++i)
      data.x[static_cast<std::size_t>(i)] *= 1e25f;  // fp32 squares: infinite
    data.x[37 + 36] = std::numeric_limits<float>::quiet_NaN();
    data.x[74 + 5] = std::numeric_limits<float>::infinity();
    const auto expected = reference::norm_forward(data.forward);
    NormForwardArgs args = data.forward;
    std::vector<float> y(data.x.size());
    args.y = y.data(), args.rstd = data.rstd.data(), args.mean = data.mean.data();
    kernels().norm_forward(args);
    EXPECT_LT(largest_error(y, expected.y), 2e-6);
    EXPECT_TRUE(std::isnan(y[37])) << "one NaN makes its whole row NaN";
    EXPECT_TRUE(std::isnan(y[74 + 5]));
  }
}

TEST_P(NormKernel, BackwardEqualsReference) {
  for (const Case& c : kCases) {
    for (const bool accumulate : {false, true}) {
      SCOPED_TRACE(testing::Message() << c.rows << " x " << c.width << " rms " << c.rms
                                      << " accumulate " << accumulate);
      Data data(c);
      data.save_statistics(kernels());
      std::vector<float> dx = data.before, dweight(static_cast<std::size_t>(c.width), 1.0f),
                         dbias = dweight;
      NormBackwardArgs args = data.backward;
      args.dx = dx.data(), args.accumulate_dx = accumulate;
      args.dweight = dweight.data();
      args.dbias = c.bias ? dbias.data() : nullptr;
      auto expected = reference::norm_backward(args, data.forward.eps);
      for (double& sum : expected.dweight) sum += 1.0;
      for (double& sum : expected.dbias) sum = c.bias ? sum + 1.0 : 1.0;
      kernels().norm_backward(args);
      // Rounding errors of g grow by rstd, which is 316 where a row has no variance.
      const double unit = std::max(1.0f, *std::max_element(data.rstd.begin(), data.rstd.end()));
      EXPECT_LT(largest_error(dx, expected.dx, unit), 3e-6);
      EXPECT_LT(largest_error(dweight, expected.dweight), 3e-6);
      EXPECT_LT(largest_error(dbias, expected.dbias), 3e-6);

      if (accumulate) continue;
      args.dx = data.dy.data();
      kernels().norm_backward(args);
      EXPECT_EQ(data.dy, dx) << "dx = dy";
    }
  }
}

TEST_P(NormKernel, BackwardPropagatesNaN) {
  Data data({3, 21, false, true});
  data.save_statistics(kernels());
  data.dy[21 + 20] = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> dx(63), dweight(21), dbias(21);
  NormBackwardArgs args = data.backward;
  args.dx = dx.data(), args.dweight = dweight.data(), args.dbias = dbias.data();
  kernels().norm_backward(args);
  EXPECT_TRUE(std::all_of(dx.begin() + 21, dx.begin() + 42, [](float v) { return std::isnan(v); }));
  EXPECT_TRUE(std::none_of(dx.begin() + 42, dx.end(), [](float v) { return std::isnan(v); }));
  EXPECT_TRUE(std::isnan(dweight[20]) && std::isnan(dbias[20]));
  EXPECT_FALSE(std::isnan(dweight[19]) || std::isnan(dbias[19]));
}

TEST_P(NormKernel, SumsDoNotDependOnThreads) {
  const Case c{700, 130, false, true};
  Data data(c);
  data.save_statistics(kernels());
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 2, 3}) {
    omp_set_num_threads(threads);
    std::vector<float> dx(data.x.size()), sums(2 * 130);
    NormBackwardArgs args = data.backward;
    args.dx = dx.data(), args.dweight = sums.data(), args.dbias = sums.data() + 130;
    kernels().norm_backward(args);
    dx.insert(dx.end(), sums.begin(), sums.end());
    results.push_back(dx);
  }
  omp_set_num_threads(1);
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

EVERY_BACKEND(NormKernel);

}  // namespace
}  // namespace longspan::model
