/// Gradients of what several tensor ranks hold: norms, biases of row-split layers, the learned
/// position table (all ranks), key/value heads when there are fewer than ranks (some). Each rank
/// has one summand: of its own tokens, or of its query heads. Runs after the gradients are summed
/// over data x context, on the part of the flat buffer that is complete on this rank.
///
/// Bytes a rank sends once a step, with E such elements held by R ranks: 2 (R-1)/R * 4 E if R is
/// the whole group, else (R-1) * 4 E.
#pragma once

#include <cstdint>
#include <vector>

#include "model/kernels/kernels.hpp"
#include "model/parameter_sharding.hpp"
#include "parallel/tensor_parallel.hpp"

namespace longspan::model {

/// Replaces the gradients of replicated parameters inside `complete` (ParameterSharding::owned():
/// ascending, disjoint, the same on all tensor ranks) by their sums over the ranks that hold the
/// parameter, in rank order: the same bits on each. Collective over the tensor group; nothing to do
/// with one rank.
void sum_replicated_gradients(const ParameterStore& store, const std::vector<OwnedRange>& complete,
                              const TensorShards& tensor, Backend backend);

/// Sum of squares of the gradients inside `ranges` that this tensor rank speaks for: of a block
/// that several hold, the first's. Their sum over the tensor group is that of the whole tensors. In
/// double. Does not communicate.
double sum_of_squares_once(const ParameterStore& store, const std::vector<OwnedRange>& ranges,
                           const TensorShards& tensor, Backend backend);

}  // namespace longspan::model
