#include "model/replicated_gradients.hpp"

#include <algorithm>
#include <set>

namespace longspan::model {
namespace {

/// Gradients in a row.
struct Run {
  float* gradient;
  std::int64_t count;
};

/// The parts of `ranges` that belong to parameters held by `replicas` ranks; neighbours are joined.
std::vector<Run> runs_of(const ParameterStore& store, const std::vector<OwnedRange>& ranges,
                         int replicas) {
  std::vector<Run> result;
  for (const OwnedRange& owned : ranges)
    for (const Parameter& p : store.parameters()) {
      if (p.replicas != replicas) continue;
      const std::int64_t begin = std::max(owned.range.begin, p.offset),
                         end = std::min(owned.range.end(), p.offset + p.count());
      if (begin >= end) continue;
      float* gradient = owned.gradient + (begin - owned.range.begin);
      if (!result.empty() && result.back().gradient + result.back().count == gradient)
        result.back().count += end - begin;
      else
        result.push_back({gradient, end - begin});
    }
  return result;
}

/// Sums `data` over the `replicas` consecutive ranks that hold the same block.
void sum_over_holders(View<float> data, int replicas, const TensorShards& tensor, Backend backend) {
  if (replicas == tensor.ranks) return tensor.group->all_reduce_sum(data)->wait();
  const int first = tensor.index / replicas * replicas, place = tensor.index - first;
  const std::int64_t count = data.size();
  Buffer<float> parts(backend.device, replicas, count);
  const auto bytes = static_cast<std::size_t>(count) * sizeof(float);
  backend.device.copy(parts.view().row(place), data.data(), bytes, backend.stream);
  for (int step = 1; step < replicas; ++step) {
    const int to = (place + step) % replicas, from = (place - step + replicas) % replicas;
    tensor.group->send_receive(data, first + to, parts.view().slice_rows(from, 1), first + from)
        ->wait();
  }
  backend.device.copy(data.data(), parts.data(), bytes, backend.stream);
  for (int holder = 1; holder < replicas; ++holder)
    backend.kernels.add(count, parts.view().row(holder), data.data(), backend.stream);
}

/// All elements of `runs` in pieces of at most kPiece: packs a piece, sums it, unpacks it.
void sum_packed(const std::vector<Run>& runs, int replicas, const TensorShards& tensor,
                Backend backend) {
  constexpr std::int64_t kPiece = std::int64_t{1} << 22;  // bounds the memory for it
  std::int64_t total = 0;
  for (const Run& run : runs) total += run.count;
  if (total == 0) return;
  Buffer<float> packed(backend.device, std::min(total, kPiece));
  std::vector<Run> piece;
  std::int64_t filled = 0;
  // What lies in `piece` from the gradients to the packed buffer, or back.
  const auto copy = [&](bool pack) {
    std::int64_t at = 0;
    for (const Run& part : piece) {
      float* room = packed.data() + at;
      backend.device.copy(pack ? room : part.gradient, pack ? part.gradient : room,
                          static_cast<std::size_t>(part.count) * sizeof(float), backend.stream);
      at += part.count;
    }
  };
  const auto flush = [&] {
    copy(true);
    sum_over_holders(packed.view().slice(0, filled), replicas, tensor, backend);
    copy(false);
    piece.clear();
    filled = 0;
  };
  for (Run run : runs)
    while (run.count > 0) {
      const std::int64_t count = std::min(run.count, packed.size() - filled);
      piece.push_back({run.gradient, count});
      run.gradient += count;
      run.count -= count;
      filled += count;
      if (filled == packed.size()) flush();
    }
  if (filled > 0) flush();
}

}  // namespace

void sum_replicated_gradients(const ParameterStore& store, const std::vector<OwnedRange>& complete,
                              const TensorShards& tensor, Backend backend) {
  if (tensor.alone()) return;
  std::set<int> replicas;
  for (const Parameter& p : store.parameters())
    if (p.replicas > 1) replicas.insert(p.replicas);
  for (const int count : replicas)
    sum_packed(runs_of(store, complete, count), count, tensor, backend);
}

double sum_of_squares_once(const ParameterStore& store, const std::vector<OwnedRange>& ranges,
                           const TensorShards& tensor, Backend backend) {
  std::set<int> replicas;
  for (const Parameter& p : store.parameters()) replicas.insert(p.replicas);
  double sum = 0;
  for (const int count : replicas) {
    if (tensor.index % count != 0) continue;
    for (const Run& run : runs_of(store, ranges, count))
      sum += backend.kernels.sum_of_squares(run.count, run.gradient, backend.stream);
  }
  return sum;
}

}  // namespace longspan::model
