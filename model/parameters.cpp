#include "model/parameters.hpp"

#include <algorithm>
#include <cassert>
#include <utility>

#include "parallel/random.hpp"

namespace longspan::model {

ParameterStore::Id ParameterStore::add(std::string name, Shape shape, Initial initial, bool decay) {
  Parameter parameter;
  parameter.name = std::move(name);
  parameter.shape = std::move(shape);
  parameter.initial = initial;
  parameter.decay = decay;
  return add(std::move(parameter));
}

ParameterStore::Id ParameterStore::add(Parameter parameter) {
  assert(weights_.empty());
  if (parameter.global_shape.empty()) parameter.global_shape = parameter.shape;
  if (parameter.block_offset.empty()) parameter.block_offset = Shape(parameter.shape.size(), 0);
  // What is not split among all of them, some hold alike.
  parameter.replicas =
      static_cast<int>(tensor_ranks_ * parameter.count() / element_count(parameter.global_shape));
  parameter.offset = count_;
  parameters_.push_back(std::move(parameter));
  count_ += parameters_.back().count();
  return parameters_.size() - 1;
}

void ParameterStore::allocate(Device& device) {
  weights_ = Buffer<float>(device, count_);
  gradients_ = Buffer<float>(device, count_);
  device.fill_zero(gradients_.data(), static_cast<std::size_t>(count_) * sizeof(float),
                   device.stream());
}

void ParameterStore::initialize(std::uint64_t seed) {
  for (const Parameter& p : parameters_) {
    float* w = weights_.data() + p.offset;
    const std::int64_t count = p.count();
    if (p.initial.standard_deviation == 0.0f) {
      std::fill_n(w, count, p.initial.constant);
      continue;
    }
    const std::uint64_t key = derive_key(seed, hash_name(p.name));
    // Element i of a block is element (row + block row) * columns + column of the whole tensor.
    const std::int64_t columns = p.shape.back(), all_columns = p.global_shape.back();
    const std::int64_t first_row = p.shape.size() > 1 ? p.block_offset.front() : 0;
    const std::int64_t first_column = p.block_offset.back();
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t whole =
          (first_row + i / columns) * all_columns + first_column + i % columns;
      w[i] = p.initial.standard_deviation * normal_at(key, static_cast<std::uint64_t>(whole));
    }
  }
}

View<float> ParameterStore::weight(Id id) const {
  return weights_.view().slice(parameters_[id].offset, parameters_[id].count());
}

View<float> ParameterStore::gradient(Id id) const {
  return gradients_.view().slice(parameters_[id].offset, parameters_[id].count());
}

const std::string& ParameterStore::name_at(std::int64_t index) const {
  const auto after =
      std::upper_bound(parameters_.begin(), parameters_.end(), index,
                       [](std::int64_t i, const Parameter& p) { return i < p.offset; });
  return std::prev(after)->name;
}

std::vector<ShardedArray> ParameterStore::arrays(const std::string& prefix,
                                                 View<float> flat) const {
  std::vector<ShardedArray> result;
  for (const Parameter& p : parameters_)
    result.push_back({prefix + p.name, DType::kF32, p.global_shape, p.block_offset, p.shape,
                      flat.data() + p.offset});
  return result;
}

}  // namespace longspan::model
