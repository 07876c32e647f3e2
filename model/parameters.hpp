/// All parameters in one flat vector, all gradients in another, in the order of the forward pass:
/// reductions and the optimizer see long vectors, layers and files see named tensors. Parameters
/// added one after the other are adjacent, so that query, key and value (or gate and up) are
/// separate tensors in a checkpoint and one matrix for the product. The vectors are cut into units
/// (embedding, each block, final norm with output), which may come and go one by one when the ranks
/// share them: parameter_sharding.hpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/config.hpp"
#include "model/rounded_weights.hpp"
#include "parallel/array.hpp"
#include "parallel/device.hpp"
#include "parallel/shard_map.hpp"

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
  std::int64_t offset = 0;  ///< first element in the flat vectors
  int unit = 0;             ///< that it belongs to
  Shape global_shape;       ///< of the whole tensor; empty when added: `shape`
  Shape block_offset;       ///< where the block begins in it; empty when added: zeros
  /// Tensor ranks that hold this same block, consecutive ones: their gradients are parts of one
  /// sum. Worked out by the store.
  int replicas = 1;
  std::int64_t count() const { return element_count(shape); }
};

/// Hears from the transformer which unit it is about to use, and brings weights and gradients that
/// are not there all the time. Every rank makes the same calls in the same order.
class UnitKeeper {
 public:
  virtual ~UnitKeeper() = default;
  /// The weights of `unit` are read until done_weights(); `next` (-1: unknown) is what is needed
  /// after it and may be fetched meanwhile. Nothing happens to a unit that is there already.
  virtual void need_weights(int unit, int next) = 0;
  virtual void done_weights(int unit) = 0;
  /// Backward adds to the gradients of `unit` until gradients_final().
  virtual void need_gradients(int unit) = 0;
  virtual void gradients_final(int unit) = 0;
};

/// A run of the flat vector that lies at `data`.
struct FlatPiece {
  FlatRange range;
  float* data = nullptr;
};

class ParameterStore {
 public:
  using Id = std::size_t;

  /// `tensor_ranks` ranks share the parameters: the blocks they hold are equally large.
  explicit ParameterStore(int tensor_ranks = 1) : tensor_ranks_(tensor_ranks) {}

  /// Declares a parameter; only before allocate().
  Id add(std::string name, Shape shape, Initial initial, bool decay);
  Id add(Parameter parameter);  ///< its offset and unit are set here
  /// What is added from here on is the next unit.
  void begin_unit();
  /// Chooses the device of everything here, and makes the whole vectors, but not those that exist
  /// in parts only under `shard`: weights uninitialised, gradients zero.
  void allocate(Device& device, OptimizerShard shard = OptimizerShard::kNone);
  /// From now on there is a bfloat16 copy of the weights of the units from `first_unit` on; after
  /// allocate().
  void keep_rounded(int first_unit, Backend backend);
  /// Sets every weight from (seed, name of the parameter, index of the element in the whole tensor)
  /// alone: the same on every mesh.
  void initialize(std::uint64_t seed);
  /// The same for the elements of one run.
  void initialize(std::uint64_t seed, const FlatPiece& piece) const;

  const std::vector<Parameter>& parameters() const { return parameters_; }
  std::int64_t count() const { return count_; }
  std::int64_t offset(Id id) const { return parameters_[id].offset; }
  const std::vector<FlatRange>& units() const { return units_; }
  /// Valid while the unit is held. Throws Error if it is not.
  View<float> weight(Id id) const;
  /// The weight's bfloat16 copy, valid while its unit is held; null if there is none.
  const std::uint16_t* weight_bf16(Id id) const;
  View<float> gradient(Id id) const;
  /// The whole vectors; empty where the ranks share them.
  View<float> weights() const { return weights_.view(); }
  View<float> gradients() const { return gradients_.view(); }

  /// Who hears of the calls of UnitKeeper below; null = nobody. The keeper outlives every pass.
  void set_keeper(UnitKeeper* keeper) { keeper_ = keeper; }
  /// A pass begins: whatever was derived from the weights is stale.
  void begin_pass();
  void need_weights(int unit, int next = -1);
  void done_weights(int unit);
  void need_gradients(int unit) const {
    if (keeper_ != nullptr) keeper_->need_gradients(unit);
  }
  void gradients_final(int unit) const {
    if (keeper_ != nullptr) keeper_->gradients_final(unit);
  }
  /// Where the keeper put a unit; null takes it away.
  void place_weights(int unit, float* at) { weights_at_[static_cast<std::size_t>(unit)] = at; }
  void place_gradients(int unit, float* at) { gradients_at_[static_cast<std::size_t>(unit)] = at; }
  /// Name of the parameter that holds flat element `index`.
  const std::string& name_at(std::int64_t index) const;

  /// How many tensor ranks hold the same block as this one of the array that is called `name`
  /// (arrays() below); 1 if it is none of these.
  int replicas_of(const std::string& name) const;
  /// The parameters as tensors over `flat`, memory of the same device (the weights, or an optimizer
  /// state of the same layout), named `prefix` + name.
  std::vector<ShardedArray> arrays(const std::string& prefix, View<float> flat) const;
  /// The same of some runs of the flat vector, in ascending order: every tensor appears at least
  /// once, with no elements if no run meets it, and as up to three rectangles (part of a row, whole
  /// rows, part of a row) for each run that does.
  std::vector<ShardedArray> arrays(const std::string& prefix,
                                   const std::vector<FlatPiece>& pieces) const;

 private:
  View<float> placed(const std::vector<float*>& at, const char* what, Id id) const;

  int tensor_ranks_;
  Device* device_ = nullptr;  ///< of allocate()
  std::vector<Parameter> parameters_;
  std::int64_t count_ = 0;
  std::vector<FlatRange> units_{{0, 0}};
  Buffer<float> weights_, gradients_;
  std::vector<float*> weights_at_, gradients_at_;  ///< first element of each unit; null: not held
  std::optional<RoundedWeights> rounded_;
  UnitKeeper* keeper_ = nullptr;
};

}  // namespace longspan::model
