#include "support/attention_reference.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace longspan::testing_support {

bool is_visible(const model::AttentionShape& shape, std::int64_t batch, std::int64_t query,
                std::int64_t key) {
  const std::int64_t own = shape.query_positions[query], other = shape.key_positions[key];
  if (own < 0 || other < 0) return false;
  if (shape.query_documents && shape.query_documents[batch * shape.queries + query] !=
                                   shape.key_documents[batch * shape.keys + key])
    return false;
  if (shape.mask.causal && own < other) return false;
  return shape.mask.window == 0 || std::abs(own - other) < shape.mask.window;
}

AttentionOutputs attention_reference(const model::AttentionShape& shape,
                                     const AttentionInputs& inputs) {
  const std::int64_t size = shape.head_size, group = shape.heads / shape.kv_heads;
  const bool backward = !inputs.dout.empty();
  AttentionOutputs out;
  out.o.assign(shape.batch * shape.queries * shape.heads * size, 0.0);
  out.lse.assign(shape.batch * shape.heads * shape.queries,
                 -std::numeric_limits<double>::infinity());
  if (backward) {
    out.dq.assign(out.o.size(), 0.0);
    out.dk.assign(shape.batch * shape.keys * shape.kv_heads * size, 0.0);
    out.dv = out.dk;
  }
  std::vector<double> p(shape.keys);
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      for (std::int64_t i = 0; i < shape.queries; ++i) {
        const std::int64_t row = ((b * shape.queries + i) * shape.heads + h) * size;
        const auto key_row = [&](std::int64_t j) {
          return ((b * shape.keys + j) * shape.kv_heads + h / group) * size;
        };
        double maximum = -std::numeric_limits<double>::infinity();
        for (std::int64_t j = 0; j < shape.keys; ++j) {
          p[j] = -std::numeric_limits<double>::infinity();
          if (!is_visible(shape, b, i, j)) continue;
          double s = 0.0;
          for (std::int64_t d = 0; d < size; ++d) s += inputs.q[row + d] * inputs.k[key_row(j) + d];
          p[j] = s * shape.scale;
          maximum = std::max(maximum, p[j]);
        }
        if (std::isinf(maximum)) continue;
        double sum = 0.0;
        for (std::int64_t j = 0; j < shape.keys; ++j) sum += p[j] = std::exp(p[j] - maximum);
        out.lse[(b * shape.heads + h) * shape.queries + i] = maximum + std::log(sum);
        for (std::int64_t j = 0; j < shape.keys; ++j) {
          p[j] /= sum;
          if (p[j] == 0.0) continue;
          for (std::int64_t d = 0; d < size; ++d) out.o[row + d] += p[j] * inputs.v[key_row(j) + d];
        }
        if (!backward) continue;
        double delta = 0.0;
        for (std::int64_t d = 0; d < size; ++d) delta += inputs.dout[row + d] * out.o[row + d];
        for (std::int64_t j = 0; j < shape.keys; ++j) {
          if (p[j] == 0.0) continue;
          double dp = 0.0;
          for (std::int64_t d = 0; d < size; ++d)
            dp += inputs.dout[row + d] * inputs.v[key_row(j) + d];
          const double ds = p[j] * (dp - delta) * shape.scale;
          for (std::int64_t d = 0; d < size; ++d) {
            out.dv[key_row(j) + d] += p[j] * inputs.dout[row + d];
            out.dq[row + d] += ds * inputs.k[key_row(j) + d];
            out.dk[key_row(j) + d] += ds * inputs.q[row + d];
          }
        }
      }
    }
  }
  return out;
}

double relative_error(std::span<const float> actual, std::span<const double> expected,
                      double floor) {
  double difference = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  norm = std::max(std::sqrt(norm), floor);
  return norm == 0.0 ? std::sqrt(difference) : std::sqrt(difference) / norm;
}

double largest_error(std::span<const float> actual, std::span<const double> expected) {
  double largest = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (actual[i] == expected[i]) continue;
    const double error = std::abs(actual[i] - expected[i]);
    largest =
        std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(largest, error);
  }
  return largest;
}

}  // namespace longspan::testing_support
