#include <fmt/format.h>
#include <fmt/ranges.h>
#include <mpi.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "parallel/error.hpp"
#include "parallel/process_group.hpp"

namespace longspan {
namespace {

using parallel::check_mpi;
using Clock = std::chrono::steady_clock;

/// MPI counts are ints: longer messages travel in pieces of this many floats.
constexpr std::int64_t kPieceFloats = std::int64_t{1} << 28;
/// What arrives to be summed is held in memory: long vectors are summed in slices of this many
/// floats.
constexpr std::int64_t kSliceFloats = std::int64_t{1} << 22;

/// Non-blocking messages with progress: MPI moves data only inside its calls, so the communication
/// thread tests and naps. A nap of 50 us hides all of a transfer at the cost of a few per cent of a
/// core; spinning would take a whole one from the compute threads.
class Messages {
 public:
  explicit Messages(MPI_Comm comm) : comm_(comm) {}

  void send(const float* data, std::int64_t count, int to) {
    for (std::int64_t at = 0; at < count; at += kPieceFloats)
      check_mpi(MPI_Isend(data + at, piece(count - at), MPI_FLOAT, to, kTag, comm_, add()),
                "MPI_Isend");
    sent_ += count * static_cast<std::int64_t>(sizeof(float));
  }
  void receive(float* data, std::int64_t count, int from) {
    for (std::int64_t at = 0; at < count; at += kPieceFloats)
      check_mpi(MPI_Irecv(data + at, piece(count - at), MPI_FLOAT, from, kTag, comm_, add()),
                "MPI_Irecv");
  }
  void wait_all() {
    int done = 0;
    for (int spin = 0; !done; ++spin) {
      check_mpi(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done,
                            MPI_STATUSES_IGNORE),
                "MPI_Testall");
      if (!done && spin > 20) std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    requests_.clear();
  }
  std::int64_t take_sent() { return std::exchange(sent_, 0); }

 private:
  static constexpr int kTag = 1;
  static int piece(std::int64_t rest) { return static_cast<int>(std::min(rest, kPieceFloats)); }
  MPI_Request* add() { return &requests_.emplace_back(MPI_REQUEST_NULL); }

  MPI_Comm comm_;
  std::vector<MPI_Request> requests_;
  std::int64_t sent_ = 0;
};

/// The thread and everything it touches. Shared with the thread, so that a transfer whose peer
/// never answers can be left behind when an exception takes the group away.
class Engine {
 public:
  struct Job {
    std::function<void()> work;
    flight::Operation operation = {};
    std::int64_t bytes = 0;     ///< of this rank's contribution
    std::int64_t sequence = 0;  ///< in the group, from 1
    bool done = false;
    std::exception_ptr failure;
  };
  using JobPtr = std::shared_ptr<Job>;

  explicit Engine(const Communicator& comm)
      : comm_(comm.duplicate_for_transfers()), messages_(comm_.raw()) {}

  int rank() const { return comm_.rank(); }
  int size() const { return comm_.size(); }
  Messages& messages() { return messages_; }
  std::int64_t bytes_sent() const { return bytes_sent_.load(); }
  double exposed_seconds() const { return exposed_seconds_; }
  std::vector<float>& incoming() { return incoming_; }

  JobPtr submit(flight::Operation operation, std::int64_t floats, std::function<void()> work) {
    auto job = std::make_shared<Job>();
    job->work = std::move(work);
    job->operation = operation;
    job->bytes = floats * static_cast<std::int64_t>(sizeof(float));
    if (size() == 1) {
      perform(*job);
      job->done = true;
      return job;
    }
    const std::lock_guard lock(mutex_);
    job->sequence = ++submitted_;
    queue_.push_back(job);
    wake_.notify_all();
    return job;
  }

  void finish(const Job& job) {
    if (size() == 1) return;
    const auto begin = Clock::now();
    std::unique_lock lock(mutex_);
    if (!job.done) {
      flight::recorder().begin_wait(comm_.flight_group(), job.sequence);
      done_.wait(lock, [&] { return job.done; });
      flight::recorder().end_wait();
    }
    exposed_seconds_ += std::chrono::duration<double>(Clock::now() - begin).count();
  }

  /// Tells the thread to end after what is queued; true if it is idle already.
  bool stop() {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    wake_.notify_all();
    return queue_.empty() && !busy_;
  }

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      const JobPtr job = queue_.front();
      queue_.pop_front();
      busy_ = true;
      lock.unlock();
      perform(*job);
      lock.lock();
      busy_ = false;
      job->done = true;
      done_.notify_all();
    }
  }

  /// Where rank r's contribution lies in incoming(), which has no slot for this rank itself.
  std::int64_t slot(int r) const { return r < rank() ? r : r - 1; }

  /// sum[i] = contributions of rank 0, 1, ... added in that order; this rank's is `own` (which may
  /// be `sum`).
  void sum_in_rank_order(const float* own, float* sum, std::int64_t count) {
    constexpr std::int64_t kBlock = 4096;  // stays in L1 while all ranks' parts are added
    float total[kBlock];
    for (std::int64_t at = 0; at < count; at += kBlock) {
      const std::int64_t length = std::min(kBlock, count - at);
      for (int r = 0; r < size(); ++r) {
        const float* part = r == rank() ? own + at : incoming_.data() + slot(r) * count + at;
        if (r == 0)
          std::copy(part, part + length, total);
        else
          for (std::int64_t i = 0; i < length; ++i) total[i] += part[i];
      }
      std::copy(total, total + length, sum + at);
    }
  }

 private:
  void perform(Job& job) {
    const flight::Scope scope(comm_.flight_group(), job.operation, flight::Element::kFloat32,
                              job.bytes);
    try {
      job.work();
    } catch (...) {
      job.failure = std::current_exception();
    }
    bytes_sent_ += messages_.take_sent();
  }

  Communicator comm_;
  Messages messages_;
  std::vector<float> incoming_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<JobPtr> queue_;
  bool stop_ = false, busy_ = false;
  std::int64_t submitted_ = 0;
  std::atomic<std::int64_t> bytes_sent_{0};
  double exposed_seconds_ = 0;  ///< only the caller's thread writes it
};

class JobPending : public Pending {
 public:
  JobPending(std::shared_ptr<Engine> engine, Engine::JobPtr job)
      : engine_(std::move(engine)), job_(std::move(job)) {}
  // Giving the buffers back under a transfer in flight would corrupt memory: an abandoned Pending
  // waits too.
  ~JobPending() override {
    if (job_ && std::uncaught_exceptions() == 0) engine_->finish(*job_);
  }
  void wait() override {
    const auto job = std::exchange(job_, nullptr);
    if (!job) return;
    engine_->finish(*job);
    if (job->failure) std::rethrow_exception(job->failure);
  }

 private:
  std::shared_ptr<Engine> engine_;
  Engine::JobPtr job_;
};

class MpiGroup : public ProcessGroup {
 public:
  explicit MpiGroup(const Communicator& comm) : engine_(std::make_shared<Engine>(comm)) {
    if (engine_->size() > 1) thread_ = std::thread([engine = engine_] { engine->run(); });
  }

  ~MpiGroup() override {
    const bool idle = engine_->stop();
    if (!thread_.joinable()) return;
    // With an exception in flight a peer may never answer the transfer in progress.
    if (std::uncaught_exceptions() > 0 && !idle)
      thread_.detach();
    else
      thread_.join();
  }

  int rank() const override { return engine_->rank(); }
  int size() const override { return engine_->size(); }
  std::int64_t bytes_sent() const override { return engine_->bytes_sent(); }
  double exposed_seconds() const override { return engine_->exposed_seconds(); }

  PendingPtr all_reduce_sum(View<float> data) override {
    return start(flight::Operation::kAllReduce, data.size(), [data](Engine& e) {
      // Reduce-scatter by direct exchange, then all-gather: 2 (P-1)/P of the data per rank, summed
      // in rank order.
      const int ranks = e.size(), me = e.rank();
      const auto begin = [&](int r) { return part_begin(data.size(), r, ranks); };
      const auto length = [&](int r) { return begin(r + 1) - begin(r); };
      const std::int64_t mine = length(me);
      e.incoming().resize(static_cast<std::size_t>(mine * (ranks - 1)));
      for (int step = 1; step < ranks; ++step) {
        const int from = (me - step + ranks) % ranks, to = (me + step) % ranks;
        e.messages().receive(e.incoming().data() + e.slot(from) * mine, mine, from);
        e.messages().send(data.data() + begin(to), length(to), to);
      }
      e.messages().wait_all();
      e.sum_in_rank_order(data.data() + begin(me), data.data() + begin(me), mine);
      for (int step = 1; step < ranks; ++step) {
        const int from = (me - step + ranks) % ranks, to = (me + step) % ranks;
        e.messages().receive(data.data() + begin(from), length(from), from);
        e.messages().send(data.data() + begin(me), mine, to);
      }
      e.messages().wait_all();
    });
  }

  PendingPtr all_gather(View<const float> mine, View<float> gathered) override {
    return start(flight::Operation::kAllGather, mine.size(), [mine, gathered](Engine& e) {
      const std::int64_t count = mine.size();
      float* own = gathered.data() + e.rank() * count;
      if (own != mine.data())
        std::memcpy(own, mine.data(), static_cast<std::size_t>(count) * sizeof(float));
      for (int step = 1; step < e.size(); ++step) {
        const int from = (e.rank() - step + e.size()) % e.size(), to = (e.rank() + step) % e.size();
        e.messages().receive(gathered.data() + from * count, count, from);
        e.messages().send(own, count, to);
      }
      e.messages().wait_all();
    });
  }

  PendingPtr reduce_scatter_sum(View<const float> parts, View<float> mine) override {
    return start(flight::Operation::kReduceScatter, parts.size(), [parts, mine](Engine& e) {
      const std::int64_t count = mine.size();
      e.incoming().resize(static_cast<std::size_t>(count * (e.size() - 1)));
      for (int step = 1; step < e.size(); ++step) {
        const int from = (e.rank() - step + e.size()) % e.size(), to = (e.rank() + step) % e.size();
        e.messages().receive(e.incoming().data() + e.slot(from) * count, count, from);
        e.messages().send(parts.data() + to * count, count, to);
      }
      e.messages().wait_all();
      e.sum_in_rank_order(parts.data() + e.rank() * count, mine.data(), count);
    });
  }

  PendingPtr reduce_scatter_parts(View<float> data) override {
    return start(flight::Operation::kReduceScatter, data.size(), [data](Engine& e) {
      const int ranks = e.size(), me = e.rank();
      const auto begin = [&](int r) { return part_begin(data.size(), r, ranks); };
      const std::int64_t longest = (data.size() + ranks - 1) / ranks;
      const std::int64_t slice = std::max<std::int64_t>(1, kSliceFloats / ranks);
      for (std::int64_t at = 0; at < longest; at += slice) {
        const auto length = [&](int r) {
          return std::clamp<std::int64_t>(begin(r + 1) - begin(r) - at, 0, slice);
        };
        const std::int64_t mine = length(me);
        e.incoming().resize(static_cast<std::size_t>(mine * (ranks - 1)));
        for (int step = 1; step < ranks; ++step) {
          const int from = (me - step + ranks) % ranks, to = (me + step) % ranks;
          e.messages().receive(e.incoming().data() + e.slot(from) * mine, mine, from);
          e.messages().send(data.data() + begin(to) + at, length(to), to);
        }
        e.messages().wait_all();
        e.sum_in_rank_order(data.data() + begin(me) + at, data.data() + begin(me) + at, mine);
      }
    });
  }

  PendingPtr all_gather_parts(View<float> data) override {
    return start(flight::Operation::kAllGather, data.size(), [data](Engine& e) {
      const int ranks = e.size(), me = e.rank();
      const auto begin = [&](int r) { return part_begin(data.size(), r, ranks); };
      const auto length = [&](int r) { return begin(r + 1) - begin(r); };
      for (int step = 1; step < ranks; ++step) {
        const int from = (me - step + ranks) % ranks, to = (me + step) % ranks;
        e.messages().receive(data.data() + begin(from), length(from), from);
        e.messages().send(data.data() + begin(me), length(me), to);
      }
      e.messages().wait_all();
    });
  }

  PendingPtr send_receive(View<const float> outgoing, int to, View<float> incoming,
                          int from) override {
    return start(flight::Operation::kSendReceive, outgoing.size(),
                 [outgoing, to, incoming, from](Engine& e) {
                   if (to == e.rank() && from == e.rank()) {
                     std::memcpy(incoming.data(), outgoing.data(),
                                 static_cast<std::size_t>(outgoing.size()) * sizeof(float));
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
    const auto out = part_starts("outgoing", outgoing_counts, outgoing.size());
    const auto in = part_starts("incoming", incoming_counts, incoming.size());
    const auto own = static_cast<std::size_t>(rank());
    if (outgoing_counts[own] != incoming_counts[own])
      throw Error(
          fmt::format("all_to_all: rank {} sends itself {} elements and expects {}: a part must "
                      "have one length on "
                      "both sides",
                      own, outgoing_counts[own], incoming_counts[own]));
    return start(flight::Operation::kAllToAll, outgoing.size(),
                 [outgoing, incoming, out, in](Engine& e) {
                   const auto count = [](const std::vector<std::int64_t>& starts, int r) {
                     const auto at = static_cast<std::size_t>(r);
                     return starts[at + 1] - starts[at];
                   };
                   const auto me = static_cast<std::size_t>(e.rank());
                   for (int step = 1; step < e.size(); ++step) {
                     const int from = (e.rank() - step + e.size()) % e.size(),
                               to = (e.rank() + step) % e.size();
                     e.messages().receive(incoming.data() + in[static_cast<std::size_t>(from)],
                                          count(in, from), from);
                     e.messages().send(outgoing.data() + out[static_cast<std::size_t>(to)],
                                       count(out, to), to);
                   }
                   // Behind the posted messages, so that they are on their way meanwhile.
                   if (in[me + 1] > in[me])
                     std::memcpy(incoming.data() + in[me], outgoing.data() + out[me],
                                 static_cast<std::size_t>(in[me + 1] - in[me]) * sizeof(float));
                   e.messages().wait_all();
                 });
  }

 private:
  /// Where parts of these lengths begin, and behind the last where they end.
  std::vector<std::int64_t> part_starts(const char* name, const std::vector<std::int64_t>& counts,
                                        std::int64_t length) const {
    std::vector<std::int64_t> starts{0};
    for (std::int64_t n : counts) starts.push_back(starts.back() + n);
    const bool negative =
        std::any_of(counts.begin(), counts.end(), [](std::int64_t n) { return n < 0; });
    if (negative || counts.size() != static_cast<std::size_t>(size()) || starts.back() != length)
      throw Error(
          fmt::format("all_to_all: the {} counts [{}] must be {} numbers, none below 0, that add "
                      "up to {} elements",
                      name, fmt::join(counts, ", "), size(), length));
    return starts;
  }

  template <class Work>
  PendingPtr start(flight::Operation operation, std::int64_t floats, Work work) {
    // The job must not own the engine: the engine owns the job.
    return std::make_unique<JobPending>(
        engine_,
        engine_->submit(operation, floats, [engine = engine_.get(), work] { work(*engine); }));
  }

  std::shared_ptr<Engine> engine_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<ProcessGroup> make_mpi_group(const Communicator& comm) {
  return std::make_unique<MpiGroup>(comm);
}

}  // namespace longspan
