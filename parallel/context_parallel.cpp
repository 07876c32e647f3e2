#include "parallel/context_parallel.hpp"

#include <numeric>

namespace longspan {
namespace {

std::int64_t rounded_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

void append_chunk(std::vector<std::int32_t>& positions, std::int64_t begin, std::int64_t count,
                  std::int64_t length) {
  for (std::int64_t p = begin; p < begin + count; ++p)
    positions.push_back(p < length ? static_cast<std::int32_t>(p) : -1);
}

}  // namespace

SequenceLayout layout_for(bool causal, std::int64_t window) {
  return causal && window == 0 ? SequenceLayout::kZigzag : SequenceLayout::kContiguous;
}

std::vector<std::int32_t> sequence_positions(std::int64_t length, int index, int count,
                                             SequenceLayout layout, std::int64_t multiple) {
  std::vector<std::int32_t> positions;
  if (layout == SequenceLayout::kContiguous || count == 1) {
    const std::int64_t chunk = rounded_up((length + count - 1) / count, multiple);
    append_chunk(positions, index * chunk, chunk, length);
    return positions;
  }
  // Two chunks a rank: together they are the multiple.
  const std::int64_t chunk = rounded_up((length + 2 * count - 1) / (2 * count),
                                        multiple / std::gcd(multiple, std::int64_t{2}));
  append_chunk(positions, index * chunk, chunk, length);
  append_chunk(positions, (2 * count - 1 - index) * chunk, chunk, length);
  return positions;
}

std::int64_t SequenceShards::bytes_sent() const {
  std::int64_t sum = 0;
  for (const ProcessGroup* g : {group, inner.get(), outer.get()})
    if (g != nullptr) sum += g->bytes_sent();
  return sum;
}

double SequenceShards::exposed_seconds() const {
  double sum = 0;
  for (const ProcessGroup* g : {group, inner.get(), outer.get()})
    if (g != nullptr) sum += g->exposed_seconds();
  return sum;
}

void split_context(SequenceShards& shards, const Communicator& context, int inner,
                   const MakeGroup& make_group) {
  const int rank = context.rank();
  shards.inner = make_group(context.split(rank / inner, rank, "context inner"));
  shards.outer = make_group(context.split(rank % inner, rank, "context outer"));
}

SequenceShards shard_sequence(std::int64_t length, SequenceLayout layout, ProcessGroup* group,
                              std::int64_t multiple) {
  SequenceShards shards;
  const int ranks = group == nullptr ? 1 : group->size();
  for (int r = 0; r < ranks; ++r)
    shards.positions.push_back(sequence_positions(length, r, ranks, layout, multiple));
  if (ranks > 1) {
    shards.index = group->rank();
    shards.group = group;
  }
  return shards;
}

}  // namespace longspan
