#include <algorithm>
#include <cstring>
#include <vector>

#include "parallel/mpi_engine.hpp"
#include "parallel/process_group.hpp"

namespace longspan {
namespace {

using parallel::Engine;

/// What arrives to be summed is held in memory: long vectors are summed in slices of this many
/// floats.
constexpr std::int64_t kSliceFloats = std::int64_t{1} << 22;

void copy(View<const float> from, View<float> to) {
  if (!from.empty() && from.data() != to.data())
    std::memcpy(to.data(), from.data(), static_cast<std::size_t>(from.size()) * sizeof(float));
}

/// part(r): part r of `data`.
auto parts_of(View<float> data, int ranks) {
  return [data, ranks](int r) { return part_of(data, r, ranks); };
}

class MpiGroup : public ProcessGroup {
 public:
  explicit MpiGroup(const Communicator& comm) : engine_(comm) {}

  int rank() const override { return engine_->rank(); }
  int size() const override { return engine_->size(); }
  std::int64_t bytes_sent() const override { return engine_->bytes_sent(); }
  double exposed_seconds() const override { return engine_->exposed_seconds(); }

  PendingPtr all_reduce_sum(View<float> data) override {
    return engine_.start(flight::Operation::kAllReduce, data.size(), [data](Engine& e) {
      // Reduce-scatter by direct exchange, then all-gather: 2 (P-1)/P of the data per rank, summed
      // in rank order.
      const auto part = parts_of(data, e.size());
      parallel::reduce_scatter(e, part, part(e.rank()));
      parallel::all_gather(e, part);
    });
  }

  PendingPtr all_gather(View<const float> mine, View<float> gathered) override {
    return engine_.start(flight::Operation::kAllGather, mine.size(), [mine, gathered](Engine& e) {
      const auto part = [&](int r) { return gathered.slice(r * mine.size(), mine.size()); };
      copy(mine, part(e.rank()));
      parallel::all_gather(e, part);
    });
  }

  PendingPtr reduce_scatter_sum(View<const float> parts, View<float> mine) override {
    return engine_.start(flight::Operation::kReduceScatter, parts.size(), [parts, mine](Engine& e) {
      const auto part = [&](int r) { return parts.slice(r * mine.size(), mine.size()); };
      parallel::reduce_scatter(e, part, mine);
    });
  }

  PendingPtr reduce_scatter_parts(View<float> data) override {
    return engine_.start(flight::Operation::kReduceScatter, data.size(), [data](Engine& e) {
      const auto part = parts_of(data, e.size());
      const std::int64_t longest = (data.size() + e.size() - 1) / e.size();
      const std::int64_t slice = std::max<std::int64_t>(1, kSliceFloats / e.size());
      for (std::int64_t at = 0; at < longest; at += slice) {
        const auto sliced = [&](int r) {
          const View<float> all = part(r);
          const std::int64_t begin = std::min(at, all.size());
          return all.slice(begin, std::min(slice, all.size() - begin));
        };
        parallel::reduce_scatter(e, sliced, sliced(e.rank()));
      }
    });
  }

  PendingPtr all_gather_parts(View<float> data) override {
    return engine_.start(flight::Operation::kAllGather, data.size(),
                         [data](Engine& e) { parallel::all_gather(e, parts_of(data, e.size())); });
  }

  PendingPtr send_receive(View<const float> outgoing, int to, View<float> incoming,
                          int from) override {
    return engine_.start(flight::Operation::kSendReceive, outgoing.size(),
                         [outgoing, to, incoming, from](Engine& e) {
                           if (to == e.rank() && from == e.rank()) {
                             copy(outgoing, incoming);
                             return;
                           }
                           e.messages().receive(incoming.data(), incoming.size(), from);
                           e.messages().send(outgoing.data(), outgoing.size(), to);
                           e.messages().wait_all();
                         });
  }

  PendingPtr all_to_all(View<const float> outgoing,
                        const std::vector<std::int64_t>& outgoing_counts, View<float> incoming,
                        const std::vector<std::int64_t>& incoming_counts) override {
    // Checked by the caller's thread, where the counts come from.
    const auto out = parallel::part_starts("outgoing", outgoing_counts, outgoing.size(), size());
    const auto in = parallel::part_starts("incoming", incoming_counts, incoming.size(), size());
    parallel::check_own_part(rank(), outgoing_counts, incoming_counts);
    return engine_.start(flight::Operation::kAllToAll, outgoing.size(),
                         [outgoing, incoming, out, in](Engine& e) {
                           const auto part = [](const auto& all, const auto& starts, int r) {
                             const auto at = static_cast<std::size_t>(r);
                             return all.slice(starts[at], starts[at + 1] - starts[at]);
                           };
                           const auto from = [&](int r) { return part(outgoing, out, r); };
                           const auto into = [&](int r) { return part(incoming, in, r); };
                           copy(from(e.rank()), into(e.rank()));
                           parallel::all_to_all(e, from, into);
                         });
  }

 private:
  parallel::RunningEngine engine_;
};

}  // namespace

std::unique_ptr<ProcessGroup> make_mpi_group(const Communicator& comm) {
  return std::make_unique<MpiGroup>(comm);
}

}  // namespace longspan
