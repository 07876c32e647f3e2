#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>

#include "support/kernel_backend.hpp"
#include "support/reference.hpp"

namespace longspan::model {
namespace {

namespace reference = testing_support;
using testing_support::largest_error;
using testing_support::random_floats;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class PointwiseKernel : public testing_support::EveryBackend {};
class DropoutKernel : public testing_support::EveryBackend {};

/// -50 .. 50 densely around zero, and the special cases.
std::vector<float> interesting_inputs() {
  std::vector<float> x = random_floats(40003, 1, 4.0f);
  for (float v = -50.0f; v <= 50.0f; v += 0.37f) x.push_back(v);
  for (const float v : {0.0f, -0.0f, 1e-30f, -1e-30f, 1e-6f, -1e-6f, 100.0f, -100.0f, 1e10f, -1e10f,
                        1e15f, -1e15f, kNaN})
    x.push_back(v);
  return x;
}

TEST_P(PointwiseKernel, Gelu) {
  const std::vector<float> x = interesting_inputs();
  const std::int64_t count = static_cast<std::int64_t>(x.size());
  const std::vector<float> dy = random_floats(count, 2);
  std::vector<float> y(x.size()), dx(x.size());
  kernels().gelu_forward({count, x.data(), y.data()});
  EXPECT_LT(largest_error(y, reference::gelu_forward({count, x.data(), nullptr}), 1e-2), 1e-6);
  const GeluBackwardArgs backward{count, x.data(), dy.data(), dx.data()};
  kernels().gelu_backward(backward);
  EXPECT_LT(largest_error(dx, reference::gelu_backward(backward), 1e-1), 2e-6);

  const auto same = [](float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); };
  std::vector<float> in_place = x;
  kernels().gelu_forward({count, in_place.data(), in_place.data()});
  EXPECT_TRUE(std::equal(y.begin(), y.end(), in_place.begin(), same)) << "y = x";
  in_place = dy;
  kernels().gelu_backward({count, x.data(), in_place.data(), in_place.data()});
  EXPECT_TRUE(std::equal(dx.begin(), dx.end(), in_place.begin(), same)) << "dx = dy";
}

TEST_P(PointwiseKernel, Swiglu) {
  for (const auto& [rows, width] :
       {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 5}, {9, 33}, {100, 344}}) {
    SCOPED_TRACE(testing::Message() << rows << " x " << width);
    std::vector<float> gate_up = random_floats(rows * 2 * width, 3, 5.0f);
    gate_up[0] = -95.0f;
    const std::vector<float> dy = random_floats(rows * width, 4);
    std::vector<float> y(dy.size()), gradient(gate_up.size());
    kernels().swiglu_forward({rows, width, gate_up.data(), y.data()});
    EXPECT_LT(
        largest_error(y, reference::swiglu_forward({rows, width, gate_up.data(), nullptr}), 1e-2),
        1e-6);
    const auto expected =
        reference::swiglu_backward({rows, width, gate_up.data(), dy.data(), nullptr});
    kernels().swiglu_backward({rows, width, gate_up.data(), dy.data(), gradient.data()});
    EXPECT_LT(largest_error(gradient, expected), 1e-6);
    kernels().swiglu_backward({rows, width, gate_up.data(), dy.data(), gate_up.data()});
    EXPECT_EQ(gate_up, gradient) << "dgate_up = gate_up";

    gate_up[0] = kNaN;
    kernels().swiglu_forward({rows, width, gate_up.data(), y.data()});
    kernels().swiglu_backward({rows, width, gate_up.data(), dy.data(), gradient.data()});
    EXPECT_TRUE(std::isnan(y[0]) && std::isnan(gradient[0]) &&
                std::isnan(gradient[static_cast<std::size_t>(width)]));
  }
}

TEST_P(PointwiseKernel, Rotary) {
  for (const std::int64_t head_size : {2, 6, 64, 72}) {
    const std::int64_t tokens = 11, rows = 2 * tokens, heads = 3,
                       row_stride = heads * head_size + 5;
    std::vector<float> table(static_cast<std::size_t>(40 * head_size));
    for (std::int64_t p = 0; p < 40; ++p) {
      for (std::int64_t i = 0; i < head_size / 2; ++i) {
        const double angle =
            static_cast<double>(p) *
            std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(head_size));
        table[static_cast<std::size_t>(p * head_size + i)] = static_cast<float>(std::cos(angle));
        table[static_cast<std::size_t>(p * head_size + head_size / 2 + i)] =
            static_cast<float>(std::sin(angle));
      }
    }
    std::vector<std::int32_t> positions;
    for (std::int32_t t = 0; t < tokens; ++t) positions.push_back((t * 17 + 3) % 40);
    const std::vector<float> before = random_floats(rows * row_stride, 5);
    std::vector<float> x = before;
    RotaryArgs args{rows,   heads,       head_size, row_stride, x.data(), positions.data(),
                    tokens, table.data()};
    const auto expected = reference::rotary(args);
    kernels().rotary(args);
    // Columns behind the heads are part of `expected`, too: untouched.
    EXPECT_LT(largest_error(x, expected), 5e-7);
    args.inverse = true;
    const auto expected_back = reference::rotary(args);
    kernels().rotary(args);
    EXPECT_LT(largest_error(x, expected_back), 5e-7);
    EXPECT_LT(largest_error(x, reference::Doubles(before.begin(), before.end())), 1e-6)
        << "there and back";
  }
}

TEST_P(PointwiseKernel, Embedding) {
  for (const std::int64_t width : {1, 5, 48, 130}) {
    const std::int64_t tokens = 150, rows = 3 * tokens, vocabulary = 37, max_positions = 200;
    const std::vector<float> table = random_floats(vocabulary * width, 6),
                             position_table = random_floats(max_positions * width, 7);
    std::vector<std::int32_t> ids, positions;
    // -1: the row of another rank's part of the table.
    for (std::int32_t row = 0; row < rows; ++row)
      ids.push_back(row % 5 == 0 ? 3 : row % 11 == 0 ? -1 : row * 101 % 37);
    for (std::int32_t t = 0; t < tokens; ++t) positions.push_back(t % 7 == 0 ? 0 : t + 20);
    std::vector<float> y(static_cast<std::size_t>(rows * width));
    EmbeddingForwardArgs forward{
        rows, width, ids.data(), table.data(), nullptr, positions.data(), tokens, y.data()};
    for (const float* positional : {static_cast<const float*>(nullptr), position_table.data()}) {
      forward.position_table = positional;
      kernels().embedding_forward(forward);
      EXPECT_LT(largest_error(y, reference::embedding_forward(forward)), 2e-7);
    }

    const std::vector<float> dy = random_floats(rows * width, 8);
    for (const bool positional : {false, true}) {
      std::vector<std::vector<float>> results;
      for (const int threads : {1, 2}) {
        omp_set_num_threads(threads);
        std::vector<float> dtable(table.size(), 0.5f), dpositions(position_table.size(), 0.25f);
        const EmbeddingBackwardArgs args{rows,
                                         width,
                                         ids.data(),
                                         dy.data(),
                                         dtable.data(),
                                         positional ? dpositions.data() : nullptr,
                                         positions.data(),
                                         tokens};
        auto expected =
            reference::embedding_backward(args, vocabulary, positional ? max_positions : 0);
        for (double& sum : expected.dtable) sum += 0.5;
        for (double& sum : expected.dposition_table) sum += 0.25;
        kernels().embedding_backward(args);
        EXPECT_LT(largest_error(dtable, expected.dtable), 2e-6);
        // The order is part of the contract: the sums of a plain loop in fp32, bit for bit.
        std::vector<float> plain(dtable.size(), 0.5f);
        for (std::int64_t i = 0; i < rows * width; ++i)
          if (const std::int64_t id = ids[static_cast<std::size_t>(i / width)]; id >= 0)
            plain[static_cast<std::size_t>(id * width + i % width)] +=
                dy[static_cast<std::size_t>(i)];
        EXPECT_EQ(dtable, plain);
        if (positional) {
          EXPECT_LT(largest_error(dpositions, expected.dposition_table), 2e-6);
        }
        dtable.insert(dtable.end(), dpositions.begin(), dpositions.end());
        results.push_back(dtable);
      }
      omp_set_num_threads(1);
      EXPECT_EQ(results[0], results[1])
          << "rows are added in ascending order by any number of threads";
    }
  }
}

/// Two sequences with numbers beyond 32 bits; the last token is padding.
struct Masked {
  std::int64_t tokens = 9, rows = 18;
  std::vector<std::int64_t> sequences = {5, (std::int64_t{3} << 32) + 7};
  std::vector<std::int32_t> positions = {0, 1, 2, 1000, 5, 2147483647, 7, 8, -1};
  Dropout dropout(float probability) const {
    return {probability, 0x123456789ABCDEF0ull, sequences.data(), positions.data(), tokens};
  }
};

TEST_P(DropoutKernel, MaskIsTheDocumentedFormula) {
  const Masked masked;
  for (const std::int64_t width : {1, 3, 4, 31, 32, 33, 100, 771}) {
    const std::vector<float> ones(static_cast<std::size_t>(masked.rows * width), 1.0f);
    for (const float probability : {1e-9f, 0.1f, 0.5f, 0.875f}) {
      std::vector<float> kept(ones.size(), kNaN);
      const Dropout dropout = masked.dropout(probability);
      kernels().residual_backward({masked.rows, width, ones.data(), kept.data(), dropout});
      for (std::int64_t row = 0; row < masked.rows; ++row) {
        for (std::int64_t col = 0; col < width; ++col) {
          const float expected =
              reference::dropout_keeps(dropout, row, col) ? 1.0f / (1.0f - probability) : 0.0f;
          ASSERT_EQ(kept[static_cast<std::size_t>(row * width + col)], expected)
              << row << ", " << col << " of " << width;
        }
      }
    }
  }
}

TEST_P(DropoutKernel, IsUnbiased) {
  const std::int64_t rows = 100, width = 1024;
  const std::vector<std::int64_t> sequences(static_cast<std::size_t>(rows), 1);
  std::vector<std::int32_t> positions;
  for (std::int32_t t = 0; t < rows; ++t) positions.push_back(t);
  const std::vector<float> ones(static_cast<std::size_t>(rows * width), 1.0f);
  for (const float probability : {0.1f, 0.5f}) {
    std::vector<float> y(ones.size());
    kernels().residual_backward({rows,
                                 width,
                                 ones.data(),
                                 y.data(),
                                 {probability, 99, sequences.data(), positions.data(), rows}});
    double mean = 0;
    for (const float v : y) mean += v / static_cast<double>(y.size());
    const double deviation =
        std::sqrt(probability / (1.0 - probability) / static_cast<double>(y.size()));
    EXPECT_NEAR(mean, 1.0, 4.0 * deviation);
  }
}

TEST_P(DropoutKernel, ResidualEqualsReference) {
  const Masked masked;
  const std::int64_t width = 77;
  const std::vector<float> x = random_floats(masked.rows * width, 1),
                           r = random_floats(masked.rows * width, 2);
  for (const float probability : {0.0f, 0.3f}) {
    // Without dropout, nothing of it is read.
    const Dropout dropout = probability > 0.0f ? masked.dropout(probability) : Dropout{};
    for (const float* base : {static_cast<const float*>(nullptr), x.data()}) {
      ResidualForwardArgs args{masked.rows, width, base, r.data(), nullptr, dropout};
      const auto expected = reference::residual_forward(args);
      std::vector<float> y(x.size()), in_place = r;
      args.y = y.data();
      kernels().residual_forward(args);
      EXPECT_LT(largest_error(y, expected), 3e-7);
      args.r = args.y = in_place.data();
      kernels().residual_forward(args);
      EXPECT_EQ(in_place, y) << "y = r";
      if (base == nullptr) continue;
      in_place = x;
      args.x = args.y = in_place.data();
      args.r = r.data();
      kernels().residual_forward(args);
      EXPECT_EQ(in_place, y) << "y = x";
    }
    std::vector<float> dr(x.size());
    kernels().residual_backward({masked.rows, width, x.data(), dr.data(), dropout});
    EXPECT_LT(largest_error(dr, reference::residual_backward(
                                    {masked.rows, width, x.data(), nullptr, dropout})),
              3e-7);
    std::vector<float> in_place = x;
    kernels().residual_backward({masked.rows, width, in_place.data(), in_place.data(), dropout});
    EXPECT_EQ(in_place, dr) << "dr = dy";
  }
}

TEST_P(DropoutKernel, ProbabilityOneDropsEverything) {
  const Masked masked;
  const std::vector<float> r = random_floats(masked.rows * 40, 2);
  std::vector<float> y(r.size(), kNaN);
  kernels().residual_backward({masked.rows, 40, r.data(), y.data(), masked.dropout(1.0f)});
  for (const float v : y) ASSERT_EQ(v, 0.0f);
}

EVERY_BACKEND(PointwiseKernel);
EVERY_BACKEND(DropoutKernel);

}  // namespace
}  // namespace longspan::model
