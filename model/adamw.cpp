#include "model/adamw.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace longspan::model {

namespace {

std::int64_t count_of(const std::vector<OwnedRange>& owned) {
  std::int64_t count = 0;
  for (const OwnedRange& mine : owned) count += mine.range.count;
  return count;
}

}  // namespace

AdamW::AdamW(ParameterStore& store, ParameterSharding& sharding, const OptimizerConfig& config,
             Backend backend)
    : AdamW(store, &sharding, sharding.owned(), config, backend) {}

AdamW::AdamW(ParameterStore& store, const OptimizerConfig& config, Backend backend)
    : AdamW(store, nullptr,
            {{{0, store.count()}, store.weights().data(), store.gradients().data()}}, config,
            backend) {}

AdamW::AdamW(ParameterStore& store, ParameterSharding* sharding, std::vector<OwnedRange> owned,
             const OptimizerConfig& config, Backend backend)
    : store_(store),
      sharding_(sharding),
      owned_(std::move(owned)),
      config_(config),
      exp_avg_(backend.device, count_of(owned_)),
      exp_avg_sq_(backend.device, count_of(owned_)),
      backend_(backend) {
  for (Buffer<float>* state : {&exp_avg_, &exp_avg_sq_})
    backend.device.fill_zero(state->data(), static_cast<std::size_t>(state->size()) * sizeof(float),
                             backend.stream);
}

double AdamW::gradient_norm() const {
  double sum = 0;
  for (const OwnedRange& mine : owned_)
    sum += backend_.kernels.sum_of_squares(mine.range.count, mine.gradient, backend_.stream);
  return std::sqrt(sharding_ != nullptr ? sharding_->sum_over_owners(sum) : sum);
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

  std::int64_t state = 0;
  for (const OwnedRange& mine : owned_) {
    update_range(mine, state, args);
    state += mine.range.count;
  }
  if (sharding_ != nullptr) return sharding_->updated();
  const View<float> gradients = store_.gradients();
  backend_.device.fill_zero(gradients.data(),
                            static_cast<std::size_t>(gradients.size()) * sizeof(float),
                            backend_.stream);
}

void AdamW::update_range(const OwnedRange& mine, std::int64_t state, AdamwArgs args) {
  // One call per run of neighbouring parameters that share their weight decay.
  const auto& parameters = store_.parameters();
  for (std::size_t first = 0; first < parameters.size();) {
    std::size_t end = first;
    while (end < parameters.size() && parameters[end].decay == parameters[first].decay) ++end;
    const Parameter& last = parameters[end - 1];
    const std::int64_t from = std::max(parameters[first].offset, mine.range.begin);
    const std::int64_t to = std::min(last.offset + last.count(), mine.range.end());
    if (from < to) {
      const std::int64_t at = from - mine.range.begin;
      args.count = to - from;
      args.weight_decay = parameters[first].decay ? static_cast<float>(config_.weight_decay) : 0.0f;
      args.weight = mine.weight + at;
      args.gradient = mine.gradient + at;
      args.exp_avg = exp_avg_.data() + state + at;
      args.exp_avg_sq = exp_avg_sq_.data() + state + at;
      backend_.kernels.adamw(args, backend_.stream);
    }
    first = end;
  }
}

std::vector<ShardedArray> AdamW::arrays() const {
  std::vector<FlatPiece> averages, squares;
  std::int64_t state = 0;
  for (const OwnedRange& mine : owned_) {
    averages.push_back({mine.range, exp_avg_.data() + state});
    squares.push_back({mine.range, exp_avg_sq_.data() + state});
    state += mine.range.count;
  }
  auto arrays = store_.arrays("optimizer/exp_avg/", averages);
  for (auto& array : store_.arrays("optimizer/exp_avg_sq/", squares))
    arrays.push_back(std::move(array));
  return arrays;
}

}  // namespace longspan::model
