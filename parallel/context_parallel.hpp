/// One sequence over the ranks of the context axis: which tokens a rank holds. The exchange of keys
/// and values is in model/attention_scheme.hpp, because only attention looks across tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/process_group.hpp"

namespace longspan {

/// Zigzag: 2P chunks, rank r holds chunks r and 2P-1-r, which gives every rank the same number of
/// causal pairs in every ring step (Llama 3, "dual chunk swap"; notes/long-sequences.md section 5).
/// Contiguous: balanced without a causal mask, and with a sliding window, for which zigzag would
/// double what neighbours exchange (section 12).
enum class SequenceLayout { kContiguous, kZigzag };
/// The layout that fits a mask; window 0 = none. What every part of the program takes, unless a
/// test tries the other. Pure.
SequenceLayout layout_for(bool causal, std::int64_t window);

/// Global positions of the tokens that rank `index` of `count` holds of a sequence of `length`
/// tokens, in local order. Every rank gets the same number, a multiple of `multiple`; positions
/// beyond the end are -1 (padding). Pure.
std::vector<std::int32_t> sequence_positions(std::int64_t length, int index, int count,
                                             SequenceLayout layout, std::int64_t multiple = 1);

/// How the sequences of a run are shared: the positions every rank of the context group holds, and
/// the group itself.
struct SequenceShards {
  std::vector<std::vector<std::int32_t>> positions;  ///< [ranks][tokens]; equal lengths
  int index = 0;                                     ///< this rank
  ProcessGroup* group = nullptr;                     ///< null when one rank holds whole sequences
  /// The context group as a grid, after split_context(); null before. Inner: consecutive ranks,
  /// outer: one of each inner group.
  std::shared_ptr<ProcessGroup> inner, outer;

  int ranks() const { return static_cast<int>(positions.size()); }
  const std::vector<std::int32_t>& mine() const {
    return positions[static_cast<std::size_t>(index)];
  }
  std::int64_t tokens() const { return static_cast<std::int64_t>(mine().size()); }
  /// Sums over the groups there are; see ProcessGroup.
  std::int64_t bytes_sent() const;
  double exposed_seconds() const;
};

/// `group` may be null or of size 1: whole sequences. `multiple` as above: the ranks of the tensor
/// axis, which split a rank's tokens evenly once more.
SequenceShards shard_sequence(std::int64_t length, SequenceLayout layout, ProcessGroup* group,
                              std::int64_t multiple = 1);

/// Makes shards.inner and shards.outer: inner groups of `inner` consecutive ranks, which divides
/// the ranks of `context`, the communicator behind shards.group; `make_group` as that one was made.
/// Collective over it.
void split_context(SequenceShards& shards, const Communicator& context, int inner,
                   const MakeGroup& make_group = make_mpi_group);

}  // namespace longspan
