/// The part of a micro-batch that one rank works on: what its memory and its time depend on besides
/// the model itself.
#pragma once

#include <cstdint>

#include "model/config.hpp"
#include "model/kernels/attention.hpp"

namespace longspan::model {

struct RankShare {
  std::int64_t sequences = 1;  ///< of the micro-batch
  std::int64_t tokens = 0;     ///< of each of them on this context rank, padding included
  int context = 1;             ///< ranks that share a sequence
  AttentionSchemeKind scheme = AttentionSchemeKind::kRing;  ///< how; with one rank it is no matter
  AttentionMask mask = {};                                  ///< what travels follows its window
  int inner = 1;   ///< hybrid: ranks of a group that exchanges heads
  int tensor = 1;  ///< ranks that share the weights, and these tokens between them
  OptimizerShard shard = OptimizerShard::kNone;
  int owners = 1;            ///< ranks that share what `shard` says
  std::int64_t staging = 0;  ///< bytes of the copy that a checkpoint is written from

  std::int64_t rows() const { return sequences * tokens; }
  /// Of the residual stream on this tensor rank.
  std::int64_t own_rows() const { return rows() / tensor; }
};

}  // namespace longspan::model
