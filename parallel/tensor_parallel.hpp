/// The weights of every layer over the ranks of the tensor axis, with Megatron's sequence
/// parallelism (Korthikanti et al. 2022). A context rank's n tokens of a sequence are held by T
/// tensor ranks: what works on single tokens (residual stream, norms, dropout) is split once more,
/// tensor rank t has rows [t * n/T, (t+1) * n/T) of every sequence; what multiplies by weights or
/// attends sees all n tokens, with the rank's part of the weights and heads. A gather leads from
/// the first to the second, a sum that is scattered leads back.
///
/// Bytes a rank sends with n tokens in all sequences of a micro-batch together, U = (T-1)/T * n * D
/// * 4:
///   a layer    forward 4 U (gather before qkv and before the MLP, sum after the output projection
///              and after the MLP); backward 6 U (gather of the output's gradient and, because it
///              is kept sharded, of the normed input again; sum of the input's gradient; both for
///              attention and the MLP); recomputed with memory.keep=attention or block: 2 U more
///   embedding  forward U, backward U
///   loss       training 2 U + 12 (T-1) * n, validation U + 12 (T-1) * n: three numbers of every
///              token travel instead of its logits
///   once a step  parameters that several ranks hold (model/replicated_gradients.hpp)
/// Read next: model/tensor_rows.hpp, model/block.cpp.
#pragma once

#include <cstdint>

#include "parallel/array.hpp"
#include "parallel/process_group.hpp"

namespace longspan {

/// What a rank holds of one dim of a weight.
struct DimPart {
  std::int64_t begin = 0, count = 0, total = 0;
  DimPart() = default;
  DimPart(std::int64_t whole) : count(whole), total(whole) {}  // NOLINT: a whole dim is a part
  DimPart(std::int64_t first, std::int64_t n, std::int64_t all)
      : begin(first), count(n), total(all) {}
  DimPart times(std::int64_t n) const { return {begin * n, count * n, total * n}; }
};

/// This rank's place on the tensor axis. One rank: everything is whole and nothing is copied or
/// sent.
struct TensorShards {
  int index = 0;
  int ranks = 1;
  ProcessGroup* group = nullptr;  ///< null with one rank

  bool alone() const { return ranks == 1; }
  /// Part `index` of `total`. Throws Error if it is no multiple of `ranks`.
  DimPart part_of(std::int64_t total) const;
  /// The same of key/value heads. With fewer heads than ranks, a divisor of their number, ranks /
  /// heads consecutive ranks hold the same head. Throws Error if neither divides the other.
  DimPart heads_of(std::int64_t heads) const;

  /// gathered[b] = the own rows of sequence b of rank 0, 1, ...; own: [sequences, n/T, D],
  /// gathered: [sequences, n, D]. Collective over the group; more than one rank.
  void gather_sequence(View<const float> own, std::int64_t sequences, View<float> gathered) const;
  /// own[b] = this rank's rows of the sum over ranks of their `parts`, in rank order; parts:
  /// [sequences, n, D], own: [sequences, n/T, D]. Collective over the group; more than one rank.
  void scatter_sum(View<const float> parts, std::int64_t sequences, View<float> own) const;
};

/// `group` may be null or of size 1: whole weights. It outlives the result.
TensorShards shard_weights(ProcessGroup* group);

}  // namespace longspan
