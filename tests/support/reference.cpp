#include "support/reference.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel/random.hpp"

namespace longspan::testing_support {
namespace {

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}
Doubles zeros(std::int64_t count) {
  return Doubles(at(count), 0.0);
}

struct RowStatistics {
  double mean, rstd;
};
RowStatistics statistics(const float* x, std::int64_t width, bool rms, double eps) {
  double mean = 0, square = 0;
  if (!rms) {
    for (std::int64_t i = 0; i < width; ++i) mean += x[i];
    mean /= static_cast<double>(width);
  }
  for (std::int64_t i = 0; i < width; ++i) square += (x[i] - mean) * (x[i] - mean);
  return {mean, 1.0 / std::sqrt(square / static_cast<double>(width) + eps)};
}

double sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}

const double kRootTwoOverPi = std::sqrt(2.0 / std::acos(-1.0));

}  // namespace

NormForward norm_forward(const model::NormForwardArgs& a) {
  NormForward result{zeros(a.rows * a.width), zeros(a.rows), zeros(a.rows)};
  for (std::int64_t row = 0; row < a.rows; ++row) {
    const float* x = a.x + row * a.width;
    const auto [mean, rstd] = statistics(x, a.width, a.rms, a.eps);
    result.mean[at(row)] = mean;
    result.rstd[at(row)] = rstd;
    for (std::int64_t i = 0; i < a.width; ++i) {
      result.y[at(row * a.width + i)] =
          (x[i] - mean) * rstd * a.weight[i] + (a.bias != nullptr ? a.bias[i] : 0.0f);
    }
  }
  return result;
}

NormBackward norm_backward(const model::NormBackwardArgs& a, double eps) {
  NormBackward result{zeros(a.rows * a.width), zeros(a.width), zeros(a.width)};
  for (std::int64_t row = 0; row < a.rows; ++row) {
    const float* x = a.x + row * a.width;
    const float* dy = a.dy + row * a.width;
    const auto [mean, rstd] = statistics(x, a.width, a.rms, eps);
    double mean_g = 0, mean_gx = 0;
    for (std::int64_t i = 0; i < a.width; ++i) {
      const double xhat = (x[i] - mean) * rstd, g = static_cast<double>(dy[i]) * a.weight[i];
      mean_g += g / static_cast<double>(a.width);
      mean_gx += g * xhat / static_cast<double>(a.width);
      result.dweight[at(i)] += dy[i] * xhat;
      result.dbias[at(i)] += dy[i];
    }
    for (std::int64_t i = 0; i < a.width; ++i) {
      const double xhat = (x[i] - mean) * rstd, g = static_cast<double>(dy[i]) * a.weight[i];
      const double before = a.accumulate_dx ? a.dx[row * a.width + i] : 0.0;
      result.dx[at(row * a.width + i)] =
          before + rstd * (g - (a.rms ? 0.0 : mean_g) - xhat * mean_gx);
    }
  }
  return result;
}

Doubles gelu_forward(const model::GeluForwardArgs& a) {
  Doubles y = zeros(a.count);
  for (std::int64_t i = 0; i < a.count; ++i) {
    const double x = a.x[i];
    y[at(i)] = 0.5 * x * (1.0 + std::tanh(kRootTwoOverPi * (x + 0.044715 * x * x * x)));
  }
  return y;
}

Doubles gelu_backward(const model::GeluBackwardArgs& a) {
  Doubles dx = zeros(a.count);
  for (std::int64_t i = 0; i < a.count; ++i) {
    const double x = a.x[i];
    const double t = std::tanh(kRootTwoOverPi * (x + 0.044715 * x * x * x));
    const double slope = kRootTwoOverPi * (1.0 + 3.0 * 0.044715 * x * x);
    dx[at(i)] = a.dy[i] * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope);
  }
  return dx;
}

Doubles swiglu_forward(const model::SwigluForwardArgs& a) {
  Doubles y = zeros(a.rows * a.width);
  for (std::int64_t row = 0; row < a.rows; ++row) {
    for (std::int64_t i = 0; i < a.width; ++i) {
      const double gate = a.gate_up[row * 2 * a.width + i],
                   up = a.gate_up[row * 2 * a.width + a.width + i];
      y[at(row * a.width + i)] = gate * sigmoid(gate) * up;
    }
  }
  return y;
}

Doubles swiglu_backward(const model::SwigluBackwardArgs& a) {
  Doubles result = zeros(a.rows * 2 * a.width);
  for (std::int64_t row = 0; row < a.rows; ++row) {
    for (std::int64_t i = 0; i < a.width; ++i) {
      const std::int64_t gate_at = row * 2 * a.width + i, up_at = gate_at + a.width;
      const double gate = a.gate_up[gate_at], up = a.gate_up[up_at], dy = a.dy[row * a.width + i];
      const double s = sigmoid(gate);
      result[at(gate_at)] = dy * up * (s + gate * s * (1.0 - s));
      result[at(up_at)] = dy * gate * s;
    }
  }
  return result;
}

bool dropout_keeps(const model::Dropout& dropout, std::int64_t row, std::int64_t col) {
  const auto sequence = static_cast<std::uint64_t>(dropout.sequences[row / dropout.tokens]);
  const auto position = static_cast<std::uint32_t>(dropout.positions[row % dropout.tokens]);
  const PhiloxBlock words = philox(
      dropout.key, sequence, std::uint64_t{position} << 32 | static_cast<std::uint64_t>(col / 4));
  return static_cast<double>(words[at(col % 4)]) >=
         static_cast<double>(dropout.probability) * 4294967296.0;
}

Doubles residual_forward(const model::ResidualForwardArgs& a) {
  Doubles y = zeros(a.rows * a.width);
  for (std::int64_t row = 0; row < a.rows; ++row) {
    for (std::int64_t col = 0; col < a.width; ++col) {
      const std::int64_t i = row * a.width + col;
      double branch = a.r[i];
      if (a.dropout.probability > 0.0f) {
        branch = dropout_keeps(a.dropout, row, col)
                     ? branch / (1.0 - static_cast<double>(a.dropout.probability))
                     : 0.0;
      }
      y[at(i)] = branch + (a.x != nullptr ? a.x[i] : 0.0f);
    }
  }
  return y;
}

Doubles residual_backward(const model::ResidualBackwardArgs& a) {
  return residual_forward({a.rows, a.width, nullptr, a.dy, nullptr, a.dropout});
}

Doubles rotary(const model::RotaryArgs& a) {
  Doubles x(a.x, a.x + a.rows * a.row_stride);
  const std::int64_t half = a.head_size / 2;
  for (std::int64_t row = 0; row < a.rows; ++row) {
    const float* angles = a.cos_sin + a.positions[row % a.tokens] * a.head_size;
    for (std::int64_t head = 0; head < a.heads; ++head) {
      for (std::int64_t i = 0; i < half; ++i) {
        const std::int64_t left = row * a.row_stride + head * a.head_size + i, right = left + half;
        const double c = angles[i], s = a.inverse ? -angles[half + i] : angles[half + i];
        x[at(left)] = a.x[left] * c - a.x[right] * s;
        x[at(right)] = a.x[right] * c + a.x[left] * s;
      }
    }
  }
  return x;
}

Doubles embedding_forward(const model::EmbeddingForwardArgs& a) {
  Doubles y = zeros(a.rows * a.width);
  for (std::int64_t row = 0; row < a.rows; ++row) {
    for (std::int64_t i = 0; i < a.width; ++i) {
      double value = a.ids[row] < 0 ? 0.0 : a.table[a.ids[row] * a.width + i];
      if (a.position_table != nullptr)
        value += a.position_table[a.positions[row % a.tokens] * a.width + i];
      y[at(row * a.width + i)] = value;
    }
  }
  return y;
}

EmbeddingBackward embedding_backward(const model::EmbeddingBackwardArgs& a, std::int64_t vocabulary,
                                     std::int64_t positions) {
  EmbeddingBackward result{zeros(vocabulary * a.width), zeros(positions * a.width)};
  for (std::int64_t row = 0; row < a.rows; ++row) {
    for (std::int64_t i = 0; i < a.width; ++i) {
      if (a.ids[row] >= 0) result.dtable[at(a.ids[row] * a.width + i)] += a.dy[row * a.width + i];
      if (positions > 0) {
        result.dposition_table[at(a.positions[row % a.tokens] * a.width + i)] +=
            a.dy[row * a.width + i];
      }
    }
  }
  return result;
}

CrossEntropy cross_entropy(const model::CrossEntropyArgs& a) {
  CrossEntropy result{zeros(a.rows), zeros(a.rows * a.row_stride)};
  for (std::int64_t row = 0; row < a.rows; ++row) {
    if (a.targets[row] < 0) continue;
    const float* logits = a.logits + row * a.row_stride;
    const double most = *std::max_element(logits, logits + a.vocabulary);
    double sum = 0;
    for (std::int64_t i = 0; i < a.vocabulary; ++i) sum += std::exp(logits[i] - most);
    const double log_sum_exp = most + std::log(sum);
    result.losses[at(row)] = log_sum_exp - logits[a.targets[row]];
    for (std::int64_t i = 0; i < a.vocabulary; ++i) {
      const double onehot = i == a.targets[row] ? 1.0 : 0.0;
      result.gradient[at(row * a.row_stride + i)] =
          a.gradient_scale * (std::exp(logits[i] - log_sum_exp) - onehot);
    }
  }
  return result;
}

Adamw adamw(const model::AdamwArgs& a) {
  Adamw result{zeros(a.count), zeros(a.count), zeros(a.count)};
  const double beta1 = a.beta1, beta2 = a.beta2;
  for (std::int64_t i = 0; i < a.count; ++i) {
    const double g = static_cast<double>(a.gradient[i]) * a.gradient_scale;
    const double m = beta1 * a.exp_avg[i] + (1.0 - beta1) * g;
    const double v = beta2 * a.exp_avg_sq[i] + (1.0 - beta2) * g * g;
    const double update = m / a.correction1 / (std::sqrt(v / a.correction2) + a.epsilon) +
                          static_cast<double>(a.weight_decay) * a.weight[i];
    result.weight[at(i)] = a.weight[i] - a.learning_rate * update;
    result.exp_avg[at(i)] = m;
    result.exp_avg_sq[at(i)] = v;
  }
  return result;
}

Doubles column_sums(std::int64_t rows, std::int64_t cols, const float* x) {
  Doubles sums = zeros(cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) sums[at(i % cols)] += x[i];
  return sums;
}

double sum_of_squares(std::int64_t count, const float* x) {
  long double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += static_cast<long double>(x[i]) * x[i];
  return static_cast<double>(sum);
}

std::vector<float> random_floats(std::int64_t count, std::uint64_t seed, float scale, float shift) {
  std::vector<float> values(at(count));
  for (std::int64_t i = 0; i < count; ++i) {
    values[at(i)] = shift + scale * normal_at(derive_key(seed, hash_name("test")),
                                              static_cast<std::uint64_t>(i));
  }
  return values;
}

double largest_error(const float* actual, const Doubles& expected, double unit) {
  double largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double a = actual[i], e = expected[i];
    if (a == e || (std::isnan(a) && std::isnan(e))) continue;
    const double error = std::abs(a - e) / (unit + std::abs(e));
    // Also catches NaN on one side and infinities that differ.
    if (!(error < std::numeric_limits<double>::infinity()))
      return std::numeric_limits<double>::infinity();
    largest = std::max(largest, error);
  }
  return largest;
}

}  // namespace longspan::testing_support
