/// The optimizer's element-wise update and the reductions around it.
#pragma once

#include <cstdint>

namespace longspan::model {

/// AdamW (Loshchilov & Hutter 2019): g = gradient * gradient_scale; m = b1 m + (1-b1) g; v = b2 v +
/// (1-b2) g^2; w -= learning_rate * (m / correction1 / (sqrt(v / correction2) + epsilon) +
/// weight_decay * w), where correction = 1 - beta^t.
struct AdamwArgs {
  std::int64_t count = 0;
  float* weight = nullptr;
  const float* gradient = nullptr;
  float* exp_avg = nullptr;
  float* exp_avg_sq = nullptr;
  float learning_rate = 0, beta1 = 0, beta2 = 0, epsilon = 0, weight_decay = 0;
  float correction1 = 1, correction2 = 1;
  float gradient_scale = 1;
};

}  // namespace longspan::model
