#include "parallel/cuda/nccl_group.hpp"

#include <exception>
#include <utility>
#include <vector>

#include "parallel/cuda/nccl_calls.hpp"
#include "parallel/mpi_engine.hpp"

namespace longspan::cuda {
namespace {

/// The first bad one of several results.
class Results {
 public:
  void add(NcclResult next) {
    if (!NcclCommunicator::bad(result_)) result_ = next;
  }
  NcclResult get() const { return result_; }

 private:
  NcclResult result_ = NcclResult::kSuccess;
};

class NothingPending : public Pending {
 public:
  void wait() override {}
};

class NcclPending : public Pending {
 public:
  NcclPending(std::shared_ptr<NcclCalls> calls, NcclCalls::CallPtr call)
      : calls_(std::move(calls)), call_(std::move(call)) {}
  ~NcclPending() override {
    if (call_) calls_->leave(*call_);
  }
  void wait() override {
    if (const auto call = std::exchange(call_, nullptr)) calls_->wait(*call);
  }

 private:
  std::shared_ptr<NcclCalls> calls_;
  NcclCalls::CallPtr call_;
};

class NcclGroup : public ProcessGroup {
 public:
  NcclGroup(const NcclApi& api, const Communicator& comm, int device, cudaStream_t compute,
            const NcclOptions& options)
      : api_(api), compute_(compute), rank_(comm.rank()), size_(comm.size()) {
    if (size_ > 1) calls_ = std::make_shared<NcclCalls>(api, comm, device, compute, options);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::int64_t bytes_sent() const override { return sent_ * 4; }
  double exposed_seconds() const override { return calls_ ? calls_->exposed_seconds() : 0; }

  PendingPtr all_reduce_sum(View<float> data) override {
    const std::int64_t mine = part_of(data, rank_, size_).size();
    return start(flight::Operation::kAllReduce, data.size(),
                 data.size() - mine + mine * (size_ - 1), [&](NcclComm comm, cudaStream_t stream) {
                   return data.empty() ? NcclResult::kSuccess
                                       : api_.all_reduce(data.data(), data.data(), count(data),
                                                         kNcclFloat32, kNcclSum, comm, stream);
                 });
  }

  PendingPtr all_gather(View<const float> mine, View<float> gathered) override {
    if (size_ == 1) copy(mine, gathered, compute_);
    return start(flight::Operation::kAllGather, mine.size(), mine.size() * (size_ - 1),
                 [&](NcclComm comm, cudaStream_t stream) {
                   return mine.empty() ? NcclResult::kSuccess
                                       : api_.all_gather(mine.data(), gathered.data(), count(mine),
                                                         kNcclFloat32, comm, stream);
                 });
  }

  PendingPtr reduce_scatter_sum(View<const float> parts, View<float> mine) override {
    if (size_ == 1) copy(parts, mine, compute_);
    return start(flight::Operation::kReduceScatter, parts.size(), mine.size() * (size_ - 1),
                 [&](NcclComm comm, cudaStream_t stream) {
                   return mine.empty() ? NcclResult::kSuccess
                                       : api_.reduce_scatter(parts.data(), mine.data(), count(mine),
                                                             kNcclFloat32, kNcclSum, comm, stream);
                 });
  }

  /// Parts of one length are NCCL's own operation; otherwise each part is a reduction to its rank
  /// (a broadcast from it), all in one group.
  PendingPtr reduce_scatter_parts(View<float> data) override {
    const View<float> mine = part_of(data, rank_, size_);
    return start(flight::Operation::kReduceScatter, data.size(), data.size() - mine.size(),
                 [&](NcclComm comm, cudaStream_t stream) {
                   if (data.size() % size_ == 0 && !data.empty())
                     return api_.reduce_scatter(data.data(), mine.data(), count(mine), kNcclFloat32,
                                                kNcclSum, comm, stream);
                   Results all;
                   for (int r = 0; r < size_; ++r)
                     if (const View<float> part = part_of(data, r, size_); !part.empty())
                       all.add(api_.reduce(part.data(), part.data(), count(part), kNcclFloat32,
                                           kNcclSum, r, comm, stream));
                   return all.get();
                 });
  }

  PendingPtr all_gather_parts(View<float> data) override {
    const View<float> mine = part_of(data, rank_, size_);
    return start(flight::Operation::kAllGather, data.size(), mine.size() * (size_ - 1),
                 [&](NcclComm comm, cudaStream_t stream) {
                   if (data.size() % size_ == 0 && !data.empty())
                     return api_.all_gather(mine.data(), data.data(), count(mine), kNcclFloat32,
                                            comm, stream);
                   Results all;
                   for (int r = 0; r < size_; ++r)
                     if (const View<float> part = part_of(data, r, size_); !part.empty())
                       all.add(api_.broadcast(part.data(), part.data(), count(part), kNcclFloat32,
                                              r, comm, stream));
                   return all.get();
                 });
  }

  PendingPtr send_receive(View<const float> outgoing, int to, View<float> incoming,
                          int from) override {
    if (to == rank_ && from == rank_) {
      copy(outgoing, incoming, compute_);
      return std::make_unique<NothingPending>();
    }
    return start(flight::Operation::kSendReceive, outgoing.size(), outgoing.size(),
                 [&](NcclComm comm, cudaStream_t stream) {
                   Results both;
                   exchange(outgoing, to, incoming, from, both, comm, stream);
                   return both.get();
                 });
  }

  PendingPtr all_to_all(View<const float> outgoing,
                        const std::vector<std::int64_t>& outgoing_counts, View<float> incoming,
                        const std::vector<std::int64_t>& incoming_counts) override {
    const auto out = parallel::part_starts("outgoing", outgoing_counts, outgoing.size(), size_);
    const auto in = parallel::part_starts("incoming", incoming_counts, incoming.size(), size_);
    parallel::check_own_part(rank_, outgoing_counts, incoming_counts);
    const auto part = [](const auto& all, const std::vector<std::int64_t>& starts, int r) {
      const auto at = static_cast<std::size_t>(r);
      return all.slice(starts[at], starts[at + 1] - starts[at]);
    };
    copy(part(outgoing, out, rank_), part(incoming, in, rank_), compute_);
    return start(flight::Operation::kAllToAll, outgoing.size(),
                 outgoing.size() - part(outgoing, out, rank_).size(),
                 [&](NcclComm comm, cudaStream_t stream) {
                   Results all;
                   for (int step = 1; step < size_; ++step) {
                     const int to = (rank_ + step) % size_, from = (rank_ - step + size_) % size_;
                     exchange(part(outgoing, out, to), to, part(incoming, in, from), from, all,
                              comm, stream);
                   }
                   return all.get();
                 });
  }

 private:
  template <class T>
  static std::size_t count(View<T> view) {
    return static_cast<std::size_t>(view.size());
  }

  void exchange(View<const float> outgoing, int to, View<float> incoming, int from,
                Results& results, NcclComm comm, cudaStream_t stream) {
    if (!outgoing.empty())
      results.add(api_.send(outgoing.data(), count(outgoing), kNcclFloat32, to, comm, stream));
    if (!incoming.empty())
      results.add(api_.receive(incoming.data(), count(incoming), kNcclFloat32, from, comm, stream));
  }

  template <class Work>
  PendingPtr start(flight::Operation operation, std::int64_t floats, std::int64_t sent,
                   const Work& work) {
    if (size_ == 1) return std::make_unique<NothingPending>();
    auto call = calls_->start(operation, floats, work);
    sent_ += sent;
    return std::make_unique<NcclPending>(calls_, std::move(call));
  }

  static void copy(View<const float> from, View<float> to, cudaStream_t stream) {
    if (!from.empty() && from.data() != to.data())
      LONGSPAN_CUDA(cudaMemcpyAsync(to.data(), from.data(), count(from) * sizeof(float),
                                    cudaMemcpyDeviceToDevice, stream));
  }

  const NcclApi& api_;
  cudaStream_t compute_;
  int rank_, size_;
  std::int64_t sent_ = 0;             ///< floats
  std::shared_ptr<NcclCalls> calls_;  ///< null of one rank
};

}  // namespace

std::unique_ptr<ProcessGroup> make_nccl_group(const NcclApi& api, const Communicator& comm,
                                              int device, cudaStream_t compute,
                                              const NcclOptions& options) {
  return std::make_unique<NcclGroup>(api, comm, device, compute, options);
}

}  // namespace longspan::cuda
