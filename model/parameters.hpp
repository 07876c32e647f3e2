/// All parameters in one flat buffer, all gradients in another, in the order of the forward pass:
/// reductions and the optimizer see long vectors, layers and files see named tensors. Parameters
/// added one after the other are adjacent, so that query, key and value (or gate and up) are
/// separate tensors in a checkpoint and one matrix for the product.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/array.hpp"
#include "parallel/device.hpp"

namespace longspan::model {

/// How a parameter starts: normal with this standard deviation, or constant.
struct Initial {
  float standard_deviation = 0.0f;
  float constant = 0.0f;
};

/// One tensor, or the block of it that this rank holds when the tensor axis shares the weights.
struct Parameter {
  std::string name;
  Shape shape;  ///< of this rank's block
  Initial initial;
  bool decay = false;       ///< weight decay applies: matrices yes, norms and biases no
  std::int64_t offset = 0;  ///< first element in the flat buffers
  Shape global_shape;       ///< of the whole tensor; empty when added: `shape`
  Shape block_offset;       ///< where the block begins in it; empty when added: zeros
  /// Tensor ranks that hold this same block, consecutive ones: their gradients are parts of one
  /// sum. Worked out by the store.
  int replicas = 1;
  std::int64_t count() const { return element_count(shape); }
};

class ParameterStore {
 public:
  using Id = std::size_t;

  /// `tensor_ranks` ranks share the parameters: the blocks they hold are equally large.
  explicit ParameterStore(int tensor_ranks = 1) : tensor_ranks_(tensor_ranks) {}

  /// Declares a parameter; only before allocate().
  Id add(std::string name, Shape shape, Initial initial, bool decay);
  Id add(Parameter parameter);  ///< its offset in the flat buffers is set here
  /// Makes the buffers: weights uninitialised, gradients zero.
  void allocate(Device& device);
  /// Sets every weight from (seed, name of the parameter, index of the element in the whole tensor)
  /// alone: the same on every mesh.
  void initialize(std::uint64_t seed);

  const std::vector<Parameter>& parameters() const { return parameters_; }
  std::int64_t count() const { return count_; }
  std::int64_t offset(Id id) const { return parameters_[id].offset; }
  View<float> weight(Id id) const;
  View<float> gradient(Id id) const;
  View<float> weights() const { return weights_.view(); }
  View<float> gradients() const { return gradients_.view(); }
  /// Name of the parameter that holds flat element `index`.
  const std::string& name_at(std::int64_t index) const;

  /// The parameters as tensors over `flat` (the weights, or an optimizer state of the same layout),
  /// named `prefix` + name.
  std::vector<ShardedArray> arrays(const std::string& prefix, View<float> flat) const;

 private:
  int tensor_ranks_;
  std::vector<Parameter> parameters_;
  std::int64_t count_ = 0;
  Buffer<float> weights_, gradients_;
};

}  // namespace longspan::model
