#include "parallel/cuda/staged_group.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/cuda/pinned.hpp"
#include "parallel/cuda/stream.hpp"
#include "parallel/mpi_engine.hpp"

namespace longspan::cuda {
namespace {

using parallel::Engine;

constexpr std::int64_t kChunkFloats = std::int64_t{1} << 20;

/// Part of an operation that fits into one of the buffers.
struct Round {
  struct Piece {
    float* device;
    std::int64_t at, count;  ///< elements of the buffer
  };
  std::vector<Piece> out, in;  ///< from the device before the exchange; to it afterwards
  std::function<void(float* buffer)> exchange;
};

/// The two buffers and the copies through them. Used by the transfer thread alone.
class Staging {
 public:
  Staging(int device, cudaStream_t compute) : device_(device), compute_(compute) {
    for (Slot& slot : slots_) slot.memory = PinnedMemory(kChunkFloats * sizeof(float));
  }

  /// What the compute stream has to do before an operation may start. Of the caller's thread.
  Event mark() {
    Event ready;
    ready.record(compute_);
    return ready;
  }

  /// make(i) gives round i; when this returns the results are on the device.
  template <class Make>
  void run(const Event& ready, std::int64_t rounds, const Make& make) {
    LONGSPAN_CUDA(cudaSetDevice(device_));
    // The results may replace what the compute stream still reads.
    ready.make_wait(out_.native());
    ready.make_wait(in_.native());
    Round next;
    if (rounds > 0) fetch(0, next = make(std::int64_t{0}));
    for (std::int64_t i = 0; i < rounds; ++i) {
      const Round now = std::exchange(next, Round{});
      if (i + 1 < rounds) fetch(i + 1, next = make(i + 1));
      Slot& slot = slots_[static_cast<std::size_t>(i % 2)];
      wait_for(slot.arrived);
      now.exchange(slot.floats());
      for (const Round::Piece& p : now.in) copy(p.device, slot.floats() + p.at, p.count, in_);
      slot.left.record(in_.native());
    }
    if (rounds > 0) wait_for(slots_[static_cast<std::size_t>((rounds - 1) % 2)].left);
  }

 private:
  struct Slot {
    PinnedMemory memory;
    Event arrived, left;  ///< its content came from the device; went back to it
    float* floats() const { return static_cast<float*>(memory.data()); }
  };

  void fetch(std::int64_t i, const Round& round) {
    Slot& slot = slots_[static_cast<std::size_t>(i % 2)];
    slot.left.make_wait(out_.native());
    for (const Round::Piece& p : round.out) copy(slot.floats() + p.at, p.device, p.count, out_);
    slot.arrived.record(out_.native());
  }
  static void copy(float* to, const float* from, std::int64_t count, const CudaStream& stream) {
    if (count > 0)
      LONGSPAN_CUDA(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(float),
                                    cudaMemcpyDefault, stream.native()));
  }
  /// Naps: waiting inside of CUDA would take a core, and the kernels before it may take seconds.
  static void wait_for(const Event& event) {
    for (int spin = 0; !event.reached(); ++spin)
      if (spin > 20) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }

  int device_;
  cudaStream_t compute_;
  CudaStream out_, in_;
  std::array<Slot, 2> slots_;
};

/// Elements [at, at + most) of `all`, as far as there are any.
template <class T>
View<T> window(View<T> all, std::int64_t at, std::int64_t most) {
  const std::int64_t begin = std::min(at, all.size());
  return all.slice(begin, std::min(most, all.size() - begin));
}

std::int64_t rounds_for(std::int64_t longest, std::int64_t chunk) {
  return (longest + chunk - 1) / chunk;
}

/// The group's views are of const elements where it only reads; a piece is one type for both ways.
template <class T>
Round::Piece piece(View<T> device, std::int64_t at) {
  return {const_cast<float*>(device.data()), at, device.size()};
}

/// part(r): part r of `data`.
auto parts_of(View<float> data, int ranks) {
  return [data, ranks](int r) { return part_of(data, r, ranks); };
}

class StagedGroup : public ProcessGroup {
 public:
  StagedGroup(const Communicator& comm, int device, cudaStream_t compute)
      : compute_(compute), engine_(comm) {
    if (size() > 1) staging_ = std::make_shared<Staging>(device, compute);
  }

  int rank() const override { return engine_->rank(); }
  int size() const override { return engine_->size(); }
  std::int64_t bytes_sent() const override { return engine_->bytes_sent(); }
  double exposed_seconds() const override { return engine_->exposed_seconds(); }

  PendingPtr all_reduce_sum(View<float> data) override {
    return start(flight::Operation::kAllReduce, data.size(), data.size(), kChunkFloats,
                 [data](Engine& e, std::int64_t at) {
                   const View<float> mine = window(data, at, kChunkFloats);
                   return Round{{piece(mine, 0)}, {piece(mine, 0)}, [&e, mine](float* buffer) {
                                  const View<float> host(buffer, mine.size());
                                  const auto part = parts_of(host, e.size());
                                  parallel::reduce_scatter(e, part, part(e.rank()));
                                  parallel::all_gather(e, part);
                                }};
                 });
  }

  PendingPtr all_gather(View<const float> mine, View<float> gathered) override {
    if (mine.data() != gathered.data() + rank() * mine.size())
      copy_here(mine, gathered.slice(rank() * mine.size(), mine.size()));
    return gather(mine.size(), mine.size(),
                  [gathered, n = mine.size()](int r) { return gathered.slice(r * n, n); });
  }

  PendingPtr reduce_scatter_sum(View<const float> parts, View<float> mine) override {
    if (size() == 1) copy_here(parts, mine);
    return scatter(parts.size(), mine.size(), mine,
                   [parts, n = mine.size()](int r) { return parts.slice(r * n, n); });
  }

  PendingPtr reduce_scatter_parts(View<float> data) override {
    const auto part = parts_of(data, size());
    return scatter(data.size(), longest_part(data), part(rank()), part);
  }

  PendingPtr all_gather_parts(View<float> data) override {
    return gather(data.size(), longest_part(data), parts_of(data, size()));
  }

  PendingPtr send_receive(View<const float> outgoing, int to, View<float> incoming,
                          int from) override {
    if (to == rank() && from == rank()) {
      copy_here(outgoing, incoming);
      outgoing = {}, incoming = {};
    }
    constexpr std::int64_t kHalf = kChunkFloats / 2;
    return start(flight::Operation::kSendReceive, outgoing.size(),
                 std::max(outgoing.size(), incoming.size()), kHalf,
                 [outgoing, to, incoming, from](Engine& e, std::int64_t at) {
                   const auto out = window(outgoing, at, kHalf);
                   const auto in = window(incoming, at, kHalf);
                   return Round{{piece(out, 0)},
                                {piece(in, kHalf)},
                                [&e, to, from, n = out.size(), m = in.size()](float* buffer) {
                                  e.messages().receive(buffer + kHalf, m, from);
                                  e.messages().send(buffer, n, to);
                                  e.messages().wait_all();
                                }};
                 });
  }

  PendingPtr all_to_all(View<const float> outgoing,
                        const std::vector<std::int64_t>& outgoing_counts, View<float> incoming,
                        const std::vector<std::int64_t>& incoming_counts) override {
    const auto out = parallel::part_starts("outgoing", outgoing_counts, outgoing.size(), size());
    const auto in = parallel::part_starts("incoming", incoming_counts, incoming.size(), size());
    parallel::check_own_part(rank(), outgoing_counts, incoming_counts);
    const auto part = [](const auto& all, const std::vector<std::int64_t>& starts, int r) {
      const auto at = static_cast<std::size_t>(r);
      return all.slice(starts[at], starts[at + 1] - starts[at]);
    };
    copy_here(part(outgoing, out, rank()), part(incoming, in, rank()));
    // Every rank makes as many rounds as its own parts need: messages between two ranks keep their
    // order, and one that has nothing more for another sends nothing.
    std::int64_t longest = 0;
    for (int r = 0; r < size(); ++r)
      if (r != rank())
        longest = std::max({longest, part(outgoing, out, r).size(), part(incoming, in, r).size()});
    const std::int64_t chunk = chunk_of(2 * size());
    return start(flight::Operation::kAllToAll, outgoing.size(), longest, chunk,
                 [outgoing, incoming, out, in, part, chunk](Engine& e, std::int64_t at) {
                   Round round;
                   std::vector<std::int64_t> out_counts, in_counts;
                   for (int r = 0; r < e.size(); ++r) {
                     const std::int64_t most = r == e.rank() ? 0 : chunk;
                     const auto from = window(part(outgoing, out, r), at, most);
                     const auto into = window(part(incoming, in, r), at, most);
                     round.out.push_back(piece(from, r * chunk));
                     round.in.push_back(piece(into, (e.size() + r) * chunk));
                     out_counts.push_back(from.size());
                     in_counts.push_back(into.size());
                   }
                   round.exchange = [&e, chunk, out_counts, in_counts](float* buffer) {
                     parallel::all_to_all(
                         e,
                         [&](int r) {
                           return View<const float>(buffer + r * chunk,
                                                    out_counts[static_cast<std::size_t>(r)]);
                         },
                         [&](int r) {
                           return View<float>(buffer + (e.size() + r) * chunk,
                                              in_counts[static_cast<std::size_t>(r)]);
                         });
                   };
                   return round;
                 });
  }

 private:
  /// Of `parts` parts that lie in one buffer.
  static std::int64_t chunk_of(int parts) {
    return std::max<std::int64_t>(1, kChunkFloats / parts);
  }
  std::int64_t longest_part(View<float> data) const { return (data.size() + size() - 1) / size(); }

  /// A round at a time of what part(r) is of every rank: the views, one behind the other in the
  /// buffer.
  template <class Parts>
  static auto host_parts(const Parts& part, int ranks, std::int64_t at, std::int64_t chunk) {
    std::vector<std::int64_t> counts;
    for (int r = 0; r < ranks; ++r) counts.push_back(window(part(r), at, chunk).size());
    return [counts, chunk](float* buffer) {
      return [buffer, &counts, chunk](int r) {
        return View<float>(buffer + r * chunk, counts[static_cast<std::size_t>(r)]);
      };
    };
  }

  template <class Parts>
  PendingPtr gather(std::int64_t floats, std::int64_t longest, const Parts& part) {
    const std::int64_t chunk = chunk_of(size());
    return start(flight::Operation::kAllGather, floats, longest, chunk,
                 [part, chunk](Engine& e, std::int64_t at) {
                   Round round;
                   for (int r = 0; r < e.size(); ++r)
                     (r == e.rank() ? round.out : round.in)
                         .push_back(piece(window(part(r), at, chunk), r * chunk));
                   round.exchange = [&e, host = host_parts(part, e.size(), at, chunk)](float* b) {
                     parallel::all_gather(e, host(b));
                   };
                   return round;
                 });
  }

  template <class Parts>
  PendingPtr scatter(std::int64_t floats, std::int64_t longest, View<float> mine,
                     const Parts& part) {
    const std::int64_t chunk = chunk_of(size());
    return start(flight::Operation::kReduceScatter, floats, longest, chunk,
                 [part, mine, chunk](Engine& e, std::int64_t at) {
                   Round round;
                   for (int r = 0; r < e.size(); ++r)
                     round.out.push_back(piece(window(part(r), at, chunk), r * chunk));
                   round.in.push_back(piece(window(mine, at, chunk), e.rank() * chunk));
                   round.exchange = [&e, host = host_parts(part, e.size(), at, chunk)](float* b) {
                     const auto parts = host(b);
                     parallel::reduce_scatter(e, parts, parts(e.rank()));
                   };
                   return round;
                 });
  }

  /// make(engine, at): the round that begins with element `at` of every part.
  template <class Make>
  PendingPtr start(flight::Operation operation, std::int64_t floats, std::int64_t longest,
                   std::int64_t chunk, Make make) {
    if (size() == 1) return engine_.start(operation, floats, [](Engine&) {});
    // std::function wants what can be copied.
    const auto ready = std::make_shared<Event>(staging_->mark());
    return engine_.start(operation, floats,
                         [staging = staging_, ready, longest, chunk, make](Engine& e) {
                           staging->run(*ready, rounds_for(longest, chunk),
                                        [&](std::int64_t i) { return make(e, i * chunk); });
                         });
  }

  /// On the compute stream: whatever comes later sees it.
  void copy_here(View<const float> from, View<float> to) {
    if (!from.empty())
      LONGSPAN_CUDA(cudaMemcpyAsync(to.data(), from.data(),
                                    static_cast<std::size_t>(from.size()) * sizeof(float),
                                    cudaMemcpyDeviceToDevice, compute_));
  }

  cudaStream_t compute_;
  std::shared_ptr<Staging> staging_;  ///< jobs own it too; null of one rank
  parallel::RunningEngine engine_;
};

}  // namespace

std::unique_ptr<ProcessGroup> make_staged_group(const Communicator& comm, int device,
                                                cudaStream_t compute) {
  return std::make_unique<StagedGroup>(comm, device, compute);
}

}  // namespace longspan::cuda
