/// The contract of all layers, and the letters of their dims.
///
/// A layer is a pair of functions; there is no hidden tape. Tensor names end in their dims, slowest
/// first. Outputs are written with `=`, parameter gradients accumulate with `+=`. What backward
/// needs is in the layer's Saved, owned by the caller, so activation checkpointing is: keep the
/// input, drop Saved, call forward again. No layer but attention looks across tokens.
///
///   B  sequences of the micro-batch on this rank     T  tokens of each sequence on this rank     D
///   model width H  query heads    G  key/value heads    K  head size    F  MLP width    V
///   vocabulary    N = B * T rows
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/config.hpp"
#include "model/kernels/kernels.hpp"
#include "model/parameters.hpp"
#include "model/pass_cache.hpp"
#include "parallel/array.hpp"
#include "parallel/context_parallel.hpp"
#include "parallel/tensor_parallel.hpp"

namespace longspan::model {

/// The tokens of one micro-batch on this rank, as the loader delivers them: memory of the host.
struct MicroBatch {
  std::int64_t sequences = 0;  ///< B
  View<const std::int32_t> inputs_BT;
  View<const std::int32_t> targets_BT;    ///< -1 = not counted in the loss
  View<const std::int32_t> documents_BT;  ///< empty: one document per sequence
  View<const std::int64_t>
      sequence_numbers_B;         ///< global sample numbers: keys of the dropout masks
  std::uint64_t dropout_key = 0;  ///< changes from step to step
};

/// What all layers of one pass share. Built by the transformer once a micro-batch.
struct PassContext {
  const SequenceShards& shards;
  const MicroBatch& batch;
  bool training = false;  ///< dropout is on
  /// Documents of every rank's tokens, [ranks][B * T]; empty: one document per sequence.
  std::vector<std::vector<std::int32_t>> documents;
  TensorShards tensor = {};
  /// What layers make of the shards, for all passes over them, and of this pass.
  std::shared_ptr<PassCache> constant = std::make_shared<PassCache>();
  std::shared_ptr<PassCache> own = std::make_shared<PassCache>();

  /// Of this context rank: what attention and the layers with shared weights see.
  std::int64_t tokens() const { return shards.tokens(); }
  std::int64_t rows() const { return batch.sequences * tokens(); }
  /// Of this tensor rank: the residual stream, norms and dropout.
  std::int64_t own_tokens() const { return tokens() / tensor.ranks; }
  std::int64_t own_rows() const { return batch.sequences * own_tokens(); }
  /// Positions of the own tokens of every sequence, [own_tokens()]: for the host, and for kernels.
  const std::int32_t* own_positions() const {
    return shards.mine().data() + tensor.index * own_tokens();
  }
  const std::int32_t* own_positions(Backend backend) const {
    return positions_of(shards.index, backend) + tensor.index * own_tokens();
  }

  /// Where kernels read them: positions [tokens()] and documents [B, tokens()] (null: one document
  /// per sequence) of all tokens of context rank `rank`.
  const std::int32_t* positions_of(int rank, Backend backend) const;
  const std::int32_t* documents_of(int rank, Backend backend) const;
  /// What kernels may know beforehand of those positions.
  PositionRuns runs_of(int rank) const;
  /// Of the own rows; probability 0 outside of training.
  Dropout dropout(float probability, std::uint64_t key, Backend backend) const;
};

/// The runs of these positions; none if there are more than two, or padding.
PositionRuns runs_of(const std::vector<std::int32_t>& positions);

}  // namespace longspan::model
