#include "model/oracle.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace longspan::model {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool sees(const AttentionShape& shape, std::int64_t batch, std::int64_t query, std::int64_t key) {
  const std::int64_t i = shape.query_positions[query], j = shape.key_positions[key];
  if (i < 0 || j < 0) return false;
  if (shape.query_documents != nullptr && shape.query_documents[batch * shape.queries + query] !=
                                              shape.key_documents[batch * shape.keys + key])
    return false;
  if (shape.mask.causal && j > i) return false;
  return shape.mask.window == 0 || std::abs(i - j) < shape.mask.window;
}

double dot(const float* a, const float* b, std::int64_t size) {
  double sum = 0;
  for (std::int64_t d = 0; d < size; ++d) sum += static_cast<double>(a[d]) * b[d];
  return sum;
}

void add_scaled(double factor, const float* from, double* to, std::int64_t size) {
  for (std::int64_t d = 0; d < size; ++d) to[d] += factor * from[d];
}

}  // namespace

OracleOutputs attention_oracle(const AttentionShape& shape, const OracleInputs& inputs) {
  const std::int64_t size = shape.head_size;
  const double scale = shape.scale;
  OracleOutputs out;
  out.output.assign(inputs.q.size(), 0.0);
  out.dq.assign(inputs.q.size(), 0.0);
  out.dk.assign(inputs.k.size(), 0.0);
  out.dv.assign(inputs.k.size(), 0.0);
  out.lse.assign(static_cast<std::size_t>(shape.batch * shape.heads * shape.queries), -kInfinity);

  std::vector<std::int64_t> visible;  // offsets of their rows in k and v
  std::vector<double> p, dp;
  for (std::int64_t b = 0; b < shape.batch; ++b)
    for (std::int64_t h = 0; h < shape.heads; ++h)
      for (std::int64_t i = 0; i < shape.queries; ++i) {
        const std::int64_t kv_head = h / (shape.heads / shape.kv_heads);
        const std::int64_t row = ((b * shape.queries + i) * shape.heads + h) * size;
        visible.clear(), p.clear(), dp.clear();
        for (std::int64_t j = 0; j < shape.keys; ++j)
          if (sees(shape, b, i, j))
            visible.push_back(((b * shape.keys + j) * shape.kv_heads + kv_head) * size);
        if (visible.empty()) continue;

        for (const std::int64_t key : visible)
          p.push_back(scale * dot(&inputs.q[row], &inputs.k[key], size));
        const double largest = *std::max_element(p.begin(), p.end());
        double sum = 0;
        for (double& x : p) sum += x = std::exp(x - largest);
        for (double& x : p) x /= sum;
        out.lse[(b * shape.heads + h) * shape.queries + i] = largest + std::log(sum);

        double mean_dp = 0;
        for (std::size_t j = 0; j < visible.size(); ++j) {
          add_scaled(p[j], &inputs.v[visible[j]], &out.output[row], size);
          dp.push_back(dot(&inputs.dout[row], &inputs.v[visible[j]], size));
          mean_dp += p[j] * dp[j];
        }
        for (std::size_t j = 0; j < visible.size(); ++j) {
          const double ds = p[j] * (dp[j] - mean_dp);
          add_scaled(scale * ds, &inputs.k[visible[j]], &out.dq[row], size);
          add_scaled(scale * ds, &inputs.q[row], &out.dk[visible[j]], size);
          add_scaled(p[j], &inputs.dout[row], &out.dv[visible[j]], size);
        }
      }
  return out;
}

double relative_error(std::span<const float> actual, std::span<const double> expected) {
  if (actual.size() != expected.size()) return kInfinity;
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  const double error = std::sqrt(difference) / (norm > 0 ? std::sqrt(norm) : 1.0);
  return std::isnan(error) ? kInfinity : error;
}

double largest_error(std::span<const float> actual, std::span<const double> expected) {
  if (actual.size() != expected.size()) return kInfinity;
  double largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (actual[i] == expected[i]) continue;
    const double error = std::abs(actual[i] - expected[i]);
    largest = std::isnan(error) ? kInfinity : std::max(largest, error);
  }
  return largest;
}

}  // namespace longspan::model
