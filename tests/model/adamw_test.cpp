#include "model/adamw.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace longspan::model {
namespace {

/// A matrix (decays) and a bias (does not) with gradients of norm 5, after one update.
struct Updated {
  ParameterStore store;
  double norm = 0;
  std::vector<float> weights;
  explicit Updated(const OptimizerConfig& config, float gradient_factor = 1.0f) {
    store.add("matrix", {2, 2}, {0.0f, 1.0f}, true);
    store.add("bias", {2}, {0.0f, 1.0f}, false);
    store.allocate(cpu_backend().device);
    store.initialize(1);
    AdamW optimizer(store, config, cpu_backend());
    const float gradients[6] = {3.0f, 0.0f, 0.0f, -4.0f, 0.0f, 0.0f};
    for (int step = 1; step <= 2; ++step) {
      for (std::int64_t i = 0; i < 6; ++i)
        store.gradients()[i] = gradient_factor * gradients[step == 1 ? i : (i + 1) % 6];
      norm = optimizer.gradient_norm();
      optimizer.update(0.01, norm, step);
    }
    weights.assign(store.weights().begin(), store.weights().end());
  }
};

OptimizerConfig plain() {
  OptimizerConfig config;
  config.weight_decay = 0.0, config.clip = 0.0;
  config.epsilon = 1.0;  // so that the size of a gradient matters and not only its sign
  return config;
}

TEST(AdamW, TheNormIsOfAllGradients) {
  EXPECT_NEAR(Updated(plain()).norm, 5.0, 1e-6);
}

TEST(AdamW, ClippingIsScalingTheGradientsToTheBound) {
  OptimizerConfig clipped = plain();
  clipped.clip = 0.5;
  const Updated by_optimizer(clipped), by_hand(plain(), 0.1f), not_at_all(plain());
  for (std::size_t i = 0; i < 6; ++i)
    EXPECT_NEAR(by_optimizer.weights[i], by_hand.weights[i], 1e-6f) << i;
  EXPECT_GT(std::abs(by_optimizer.weights[0] - not_at_all.weights[0]), 1e-4f);
  clipped.clip = 6.0;  // the norm is below the bound
  EXPECT_EQ(Updated(clipped).weights, not_at_all.weights);
}

TEST(AdamW, DecayIsDecoupledAndSparesBiases) {
  OptimizerConfig decaying = plain();
  decaying.weight_decay = 0.5;
  const Updated with(decaying), without(plain());
  // Where the gradient is zero throughout, two steps of w -= rate * decay * w are all there is.
  EXPECT_NEAR(with.weights[1], std::pow(1.0 - 0.01 * 0.5, 2), 1e-6);
  EXPECT_EQ(without.weights[1], 1.0f);
  EXPECT_EQ(with.weights[4], 1.0f);
}

TEST(AdamW, AnUpdateClearsTheGradients) {
  const Updated once(plain());
  for (float g : once.store.gradients()) EXPECT_EQ(g, 0.0f);
}

}  // namespace
}  // namespace longspan::model
