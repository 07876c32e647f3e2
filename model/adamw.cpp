#include "model/adamw.hpp"

#include <cmath>

namespace longspan::model {

AdamW::AdamW(ParameterStore& store, const OptimizerConfig& config, Backend backend)
    : store_(store),
      config_(config),
      exp_avg_(backend.device, store.count()),
      exp_avg_sq_(backend.device, store.count()),
      backend_(backend) {
  for (Buffer<float>* state : {&exp_avg_, &exp_avg_sq_})
    backend.device.fill_zero(state->data(), static_cast<std::size_t>(state->size()) * sizeof(float),
                             backend.stream);
}

double AdamW::gradient_norm() const {
  const View<float> gradients = store_.gradients();
  return std::sqrt(
      backend_.kernels.sum_of_squares(gradients.size(), gradients.data(), backend_.stream));
}

void AdamW::update(double learning_rate, double gradient_norm, std::int64_t step) {
  AdamwArgs args;
  args.learning_rate = static_cast<float>(learning_rate);
  args.beta1 = static_cast<float>(config_.beta1), args.beta2 = static_cast<float>(config_.beta2);
  args.epsilon = static_cast<float>(config_.epsilon);
  args.correction1 = static_cast<float>(1.0 - std::pow(config_.beta1, static_cast<double>(step)));
  args.correction2 = static_cast<float>(1.0 - std::pow(config_.beta2, static_cast<double>(step)));
  const bool clips = config_.clip > 0.0 && gradient_norm > config_.clip;
  args.gradient_scale = clips ? static_cast<float>(config_.clip / gradient_norm) : 1.0f;

  // One call per run of neighbouring parameters that share their weight decay.
  const auto& parameters = store_.parameters();
  for (std::size_t first = 0; first < parameters.size();) {
    std::size_t end = first;
    while (end < parameters.size() && parameters[end].decay == parameters[first].decay) ++end;
    const std::int64_t offset = parameters[first].offset;
    args.count = parameters[end - 1].offset + parameters[end - 1].count() - offset;
    args.weight_decay = parameters[first].decay ? static_cast<float>(config_.weight_decay) : 0.0f;
    args.weight = store_.weights().data() + offset;
    args.gradient = store_.gradients().data() + offset;
    args.exp_avg = exp_avg_.data() + offset;
    args.exp_avg_sq = exp_avg_sq_.data() + offset;
    backend_.kernels.adamw(args, backend_.stream);
    first = end;
  }
  const View<float> gradients = store_.gradients();
  backend_.device.fill_zero(gradients.data(),
                            static_cast<std::size_t>(gradients.size()) * sizeof(float),
                            backend_.stream);
}

std::vector<ShardedArray> AdamW::arrays() const {
  auto arrays = store_.arrays("optimizer/exp_avg/", exp_avg_);
  for (auto& array : store_.arrays("optimizer/exp_avg_sq/", exp_avg_sq_))
    arrays.push_back(std::move(array));
  return arrays;
}

}  // namespace longspan::model
