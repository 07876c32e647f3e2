#include "parallel/tensor_parallel.hpp"

#include <algorithm>
#include <cassert>
#include <vector>

#include "parallel/error.hpp"

namespace longspan {
namespace {

void wait_for_all(std::vector<PendingPtr>& transfers) {
  for (auto& transfer : transfers) transfer->wait();
}

}  // namespace

DimPart TensorShards::part_of(std::int64_t total) const {
  if (total % ranks != 0)
    fail("{} of a dim cannot be shared evenly by {} tensor ranks", total, ranks);
  return {total / ranks * index, total / ranks, total};
}

DimPart TensorShards::heads_of(std::int64_t heads) const {
  if (heads % ranks != 0 && ranks % heads != 0)
    fail("{} key/value heads cannot be shared evenly by {} tensor ranks", heads, ranks);
  return {heads * index / ranks, std::max<std::int64_t>(1, heads / ranks), heads};
}

void TensorShards::gather_sequence(View<const float> own, std::int64_t sequences,
                                   View<float> gathered) const {
  assert(gathered.size() == own.size() * ranks && own.rows() % sequences == 0);
  const std::int64_t rows = own.rows() / sequences;
  std::vector<PendingPtr> transfers;
  for (std::int64_t b = 0; b < sequences; ++b)
    transfers.push_back(group->all_gather(own.slice_rows(b * rows, rows),
                                          gathered.slice_rows(b * rows * ranks, rows * ranks)));
  wait_for_all(transfers);
}

void TensorShards::scatter_sum(View<const float> parts, std::int64_t sequences,
                               View<float> own) const {
  assert(parts.size() == own.size() * ranks && own.rows() % sequences == 0);
  const std::int64_t rows = own.rows() / sequences;
  std::vector<PendingPtr> transfers;
  for (std::int64_t b = 0; b < sequences; ++b)
    transfers.push_back(group->reduce_scatter_sum(parts.slice_rows(b * rows * ranks, rows * ranks),
                                                  own.slice_rows(b * rows, rows)));
  wait_for_all(transfers);
}

TensorShards shard_weights(ProcessGroup* group) {
  if (group == nullptr || group->size() == 1) return {};
  return {group->rank(), group->size(), group};
}

}  // namespace longspan
