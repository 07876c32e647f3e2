#include "model/parameters.hpp"

#include <algorithm>
#include <cassert>
#include <utility>

#include "parallel/error.hpp"
#include "parallel/host_copy.hpp"
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
  parameter.unit = static_cast<int>(units_.size()) - 1;
  const std::int64_t added = parameter.count();
  parameters_.push_back(std::move(parameter));
  count_ += added;
  units_.back().count += added;
  return parameters_.size() - 1;
}

void ParameterStore::begin_unit() {
  units_.push_back({count_, 0});
}

void ParameterStore::allocate(Device& device, OptimizerShard shard) {
  device_ = &device;
  weights_at_.assign(units_.size(), nullptr);
  gradients_at_.assign(units_.size(), nullptr);
  const bool whole_weights = shard != OptimizerShard::kParameters;
  const bool whole_gradients = whole_weights && shard != OptimizerShard::kGradients;
  if (whole_weights) weights_ = Buffer<float>(device, count_);
  if (whole_gradients) {
    gradients_ = Buffer<float>(device, count_);
    device.fill_zero(gradients_.data(), static_cast<std::size_t>(count_) * sizeof(float),
                     device.stream());
  }
  for (std::size_t u = 0; u < units_.size(); ++u) {
    if (whole_weights) weights_at_[u] = weights_.data() + units_[u].begin;
    if (whole_gradients) gradients_at_[u] = gradients_.data() + units_[u].begin;
  }
}

void ParameterStore::keep_rounded(int first_unit, Backend backend) {
  rounded_.emplace(units_, first_unit, !weights_.empty(), backend);
}

void ParameterStore::initialize(std::uint64_t seed) {
  initialize(seed, FlatPiece{{0, count_}, weights_.data()});
}

void ParameterStore::initialize(std::uint64_t seed, const FlatPiece& piece) const {
  for (const Parameter& p : parameters_) {
    const std::int64_t begin = std::max(p.offset, piece.range.begin) - p.offset;
    const std::int64_t end = std::min(p.offset + p.count(), piece.range.end()) - p.offset;
    if (end <= begin) continue;
    const View<float> weights(piece.data + (p.offset + begin - piece.range.begin), end - begin);
    const std::uint64_t key = derive_key(seed, hash_name(p.name));
    // Element i of a block is element (row + block row) * columns + column of the whole tensor.
    const std::int64_t columns = p.shape.back(), all_columns = p.global_shape.back();
    const std::int64_t first_row = p.shape.size() > 1 ? p.block_offset.front() : 0;
    const std::int64_t first_column = p.block_offset.back();
    write_from_host(*device_, device_->stream(), weights, [&](View<float> to) {
      float* const w = to.data();
      if (p.initial.standard_deviation == 0.0f) {
        std::fill_n(w, end - begin, p.initial.constant);
        return;
      }
#pragma omp parallel for schedule(static)
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t whole =
            (first_row + i / columns) * all_columns + first_column + i % columns;
        w[i - begin] =
            p.initial.standard_deviation * normal_at(key, static_cast<std::uint64_t>(whole));
      }
    });
  }
}

View<float> ParameterStore::placed(const std::vector<float*>& at, const char* what, Id id) const {
  const Parameter& p = parameters_[id];
  const auto unit = static_cast<std::size_t>(p.unit);
  if (at[unit] == nullptr)
    fail("the {} of {} are used while its unit is not held: a layer must be announced first", what,
         p.name);
  return {at[unit] + (p.offset - units_[unit].begin), p.count()};
}

View<float> ParameterStore::weight(Id id) const {
  return placed(weights_at_, "weights", id);
}

const std::uint16_t* ParameterStore::weight_bf16(Id id) const {
  const Parameter& p = parameters_[id];
  const std::uint16_t* unit = rounded_ ? rounded_->at(p.unit) : nullptr;
  return unit == nullptr ? nullptr
                         : unit + (p.offset - units_[static_cast<std::size_t>(p.unit)].begin);
}

void ParameterStore::begin_pass() {
  if (rounded_) rounded_->begin_pass();
}

void ParameterStore::need_weights(int unit, int next) {
  if (keeper_ != nullptr) keeper_->need_weights(unit, next);
  if (rounded_) rounded_->need(unit, weights_at_[static_cast<std::size_t>(unit)]);
}

void ParameterStore::done_weights(int unit) {
  if (rounded_) rounded_->done(unit);
  if (keeper_ != nullptr) keeper_->done_weights(unit);
}

View<float> ParameterStore::gradient(Id id) const {
  return placed(gradients_at_, "gradients", id);
}

const std::string& ParameterStore::name_at(std::int64_t index) const {
  const auto after =
      std::upper_bound(parameters_.begin(), parameters_.end(), index,
                       [](std::int64_t i, const Parameter& p) { return i < p.offset; });
  return std::prev(after)->name;
}

int ParameterStore::replicas_of(const std::string& name) const {
  for (const Parameter& p : parameters_)
    if (name.ends_with("/" + p.name)) return p.replicas;
  return 1;
}

std::vector<ShardedArray> ParameterStore::arrays(const std::string& prefix,
                                                 View<float> flat) const {
  return arrays(prefix, std::vector<FlatPiece>{{{0, flat.size()}, flat.data()}});
}

std::vector<ShardedArray> ParameterStore::arrays(const std::string& prefix,
                                                 const std::vector<FlatPiece>& pieces) const {
  std::vector<ShardedArray> result;
  for (const Parameter& p : parameters_) {
    const std::int64_t columns = p.shape.back();
    const std::size_t before = result.size();
    const auto add = [&](std::int64_t row, std::int64_t rows, std::int64_t column,
                         std::int64_t count, float* data) {
      ShardedArray array{prefix + p.name, DType::kF32, p.global_shape, p.block_offset, {}, data,
                         device_};
      array.offset.front() += row;
      array.offset.back() += column;
      array.shape = p.shape.size() == 1 ? Shape{count} : Shape{rows, count};
      result.push_back(std::move(array));
    };
    for (const FlatPiece& piece : pieces) {
      std::int64_t at = std::max(p.offset, piece.range.begin) - p.offset;
      const std::int64_t end = std::min(p.offset + p.count(), piece.range.end()) - p.offset;
      while (at < end) {
        const std::int64_t row = at / columns, column = at % columns;
        // Whole rows together; a row that begins or ends inside the run by itself.
        const bool whole = column == 0 && end - at >= columns;
        const std::int64_t rows = whole ? (end - at) / columns : 1;
        const std::int64_t count = whole ? columns : std::min(columns - column, end - at);
        add(row, rows, column, count, piece.data + (p.offset + at - piece.range.begin));
        at += rows * count;
      }
    }
    if (result.size() == before) add(0, 0, 0, p.shape.size() == 1 ? 0 : columns, nullptr);
  }
  return result;
}

}  // namespace longspan::model
