/// What every ProcessGroup over MPI is made of: messages with progress, the transfer thread with
/// its queue, and the exchanges on host memory that the operations consist of. Inside of groups
/// only: mpi_group.cpp (host memory), cuda/staged_group.cpp (device memory by way of the host).
#pragma once

#include <mpi.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/process_group.hpp"

namespace longspan::parallel {

/// Non-blocking messages of floats, of any length, in order between two ranks. Those of no elements
/// are not sent at all.
class Messages {
 public:
  explicit Messages(MPI_Comm comm) : comm_(comm) {}
  void send(const float* data, std::int64_t count, int to);
  void receive(float* data, std::int64_t count, int from);
  /// Returns when all of them have gone through. Naps between its looks: see mpi_engine.cpp.
  void wait_all();
  /// Bytes sent since the last call.
  std::int64_t take_sent() { return std::exchange(sent_, 0); }

 private:
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

  /// Over a duplicate of `comm`. Collective.
  explicit Engine(const Communicator& comm)
      : comm_(comm.duplicate_for_transfers()), messages_(comm_.raw()) {}

  int rank() const { return comm_.rank(); }
  int size() const { return comm_.size(); }
  Messages& messages() { return messages_; }
  std::int64_t bytes_sent() const { return bytes_sent_.load(); }
  double exposed_seconds() const { return exposed_seconds_; }
  /// Room for `floats` elements that are to be summed; of the transfer thread.
  float* incoming(std::int64_t floats);

  /// `work` will be run on the transfer thread, behind what was submitted before; of one rank, here
  /// and now.
  JobPtr submit(flight::Operation operation, std::int64_t floats, std::function<void()> work);
  /// Returns when `job` is done.
  void finish(const Job& job);
  /// Tells the thread to end after what is queued; true if it is idle already.
  bool stop();
  /// The transfer thread.
  void run();

 private:
  void perform(Job& job);

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

/// Owns an engine and its thread.
class RunningEngine {
 public:
  explicit RunningEngine(const Communicator& comm);
  ~RunningEngine();
  RunningEngine(const RunningEngine&) = delete;
  RunningEngine& operator=(const RunningEngine&) = delete;
  Engine* operator->() const { return engine_.get(); }

  /// `work` takes the engine; it runs on the transfer thread.
  template <class Work>
  PendingPtr start(flight::Operation operation, std::int64_t floats, Work work) {
    // The job must not own the engine: the engine owns the job.
    return pending(
        engine_->submit(operation, floats, [engine = engine_.get(), work] { work(*engine); }));
  }

 private:
  PendingPtr pending(Engine::JobPtr job) const;
  std::shared_ptr<Engine> engine_;
  std::thread thread_;
};

/// mine = sum of all ranks' part(rank()), in rank order. part(r): this rank's contribution to what
/// rank r gets, a View of floats on the host; mine may be part(rank()).
template <class Parts>
void reduce_scatter(Engine& e, const Parts& part, View<float> mine);
/// part(r), a View of floats on the host, becomes what rank r has in its part(r).
template <class Parts>
void all_gather(Engine& e, const Parts& part);
/// into(rank()) of rank r = from(r) here, except to itself; lengths may differ.
template <class From, class Into>
void all_to_all(Engine& e, const From& from, const Into& into);

/// sum[i] = contributions of rank 0, 1, ... added in that order; this rank's is `own` (which may be
/// `sum`), the others lie behind each other in `incoming`, which has no slot for this rank.
void sum_in_rank_order(int rank, int ranks, const float* own, const float* incoming, float* sum,
                       std::int64_t count);

/// Where parts of these lengths begin, and behind the last where they end. Throws Error unless they
/// are `ranks` many, none below 0, and add up to `length`.
std::vector<std::int64_t> part_starts(const char* name, const std::vector<std::int64_t>& counts,
                                      std::int64_t length, int ranks);
/// Both of an all_to_all, and the length of what a rank sends itself.
void check_own_part(int rank, const std::vector<std::int64_t>& outgoing_counts,
                    const std::vector<std::int64_t>& incoming_counts);

// ---- implementation of the templates ----

/// The ranks that `e` receives from and sends to in step 1, 2, ... size() - 1: no two ranks meet
/// the same peer at once.
inline int from_in_step(const Engine& e, int step) {
  return (e.rank() - step + e.size()) % e.size();
}
inline int to_in_step(const Engine& e, int step) {
  return (e.rank() + step) % e.size();
}

template <class Parts>
void reduce_scatter(Engine& e, const Parts& part, View<float> mine) {
  const std::int64_t count = mine.size();
  float* const incoming = e.incoming(count * (e.size() - 1));
  for (int step = 1; step < e.size(); ++step) {
    const int from = from_in_step(e, step), to = to_in_step(e, step);
    e.messages().receive(incoming + (from < e.rank() ? from : from - 1) * count, count, from);
    e.messages().send(part(to).data(), part(to).size(), to);
  }
  e.messages().wait_all();
  sum_in_rank_order(e.rank(), e.size(), part(e.rank()).data(), incoming, mine.data(), count);
}

template <class Parts>
void all_gather(Engine& e, const Parts& part) {
  for (int step = 1; step < e.size(); ++step) {
    const int from = from_in_step(e, step), to = to_in_step(e, step);
    e.messages().receive(part(from).data(), part(from).size(), from);
    e.messages().send(part(e.rank()).data(), part(e.rank()).size(), to);
  }
  e.messages().wait_all();
}

template <class From, class Into>
void all_to_all(Engine& e, const From& from, const Into& into) {
  for (int step = 1; step < e.size(); ++step) {
    const int source = from_in_step(e, step), to = to_in_step(e, step);
    e.messages().receive(into(source).data(), into(source).size(), source);
    e.messages().send(from(to).data(), from(to).size(), to);
  }
  e.messages().wait_all();
}

}  // namespace longspan::parallel
