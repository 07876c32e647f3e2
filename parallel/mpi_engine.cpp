#include "parallel/mpi_engine.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>

#include "parallel/error.hpp"

namespace longspan::parallel {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTag = 1;
/// MPI counts are ints: longer messages travel in pieces of this many floats.
constexpr std::int64_t kPieceFloats = std::int64_t{1} << 28;

int piece(std::int64_t rest) {
  return static_cast<int>(std::min(rest, kPieceFloats));
}

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

}  // namespace

void Messages::send(const float* data, std::int64_t count, int to) {
  for (std::int64_t at = 0; at < count; at += kPieceFloats)
    check_mpi(MPI_Isend(data + at, piece(count - at), MPI_FLOAT, to, kTag, comm_, add()),
              "MPI_Isend");
  sent_ += count * static_cast<std::int64_t>(sizeof(float));
}

void Messages::receive(float* data, std::int64_t count, int from) {
  for (std::int64_t at = 0; at < count; at += kPieceFloats)
    check_mpi(MPI_Irecv(data + at, piece(count - at), MPI_FLOAT, from, kTag, comm_, add()),
              "MPI_Irecv");
}

/// MPI moves data only inside its calls, so the communication thread tests and naps. A nap of 20 us
/// hides all of a transfer at the cost of a few per cent of a core; spinning would take a whole one
/// from the compute threads. (Naps of 100 us made steps of two tensor-parallel ranks 8 % longer.)
void Messages::wait_all() {
  int done = 0;
  for (int spin = 0; !done; ++spin) {
    check_mpi(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done,
                          MPI_STATUSES_IGNORE),
              "MPI_Testall");
    if (!done && spin > 20) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  requests_.clear();
}

float* Engine::incoming(std::int64_t floats) {
  incoming_.resize(static_cast<std::size_t>(floats));
  return incoming_.data();
}

Engine::JobPtr Engine::submit(flight::Operation operation, std::int64_t floats,
                              std::function<void()> work) {
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

void Engine::finish(const Job& job) {
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

bool Engine::stop() {
  const std::lock_guard lock(mutex_);
  stop_ = true;
  wake_.notify_all();
  return queue_.empty() && !busy_;
}

void Engine::run() {
  // Naps last as long as they say; by default Linux may add 50 us.
  ::prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
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

void Engine::perform(Job& job) {
  const flight::Scope scope(comm_.flight_group(), job.operation, flight::Element::kFloat32,
                            job.bytes);
  try {
    job.work();
  } catch (...) {
    job.failure = std::current_exception();
  }
  bytes_sent_ += messages_.take_sent();
}

RunningEngine::RunningEngine(const Communicator& comm) : engine_(std::make_shared<Engine>(comm)) {
  if (engine_->size() > 1) thread_ = std::thread([engine = engine_] { engine->run(); });
}

RunningEngine::~RunningEngine() {
  const bool idle = engine_->stop();
  if (!thread_.joinable()) return;
  // With an exception in flight a peer may never answer the transfer in progress.
  if (std::uncaught_exceptions() > 0 && !idle)
    thread_.detach();
  else
    thread_.join();
}

PendingPtr RunningEngine::pending(Engine::JobPtr job) const {
  return std::make_unique<JobPending>(engine_, std::move(job));
}

void sum_in_rank_order(int rank, int ranks, const float* own, const float* incoming, float* sum,
                       std::int64_t count) {
  constexpr std::int64_t kBlock = 4096;  // stays in L1 while all ranks' parts are added
  float total[kBlock];
  for (std::int64_t at = 0; at < count; at += kBlock) {
    const std::int64_t length = std::min(kBlock, count - at);
    for (int r = 0; r < ranks; ++r) {
      const float* part = r == rank ? own + at : incoming + (r < rank ? r : r - 1) * count + at;
      if (r == 0)
        std::copy(part, part + length, total);
      else
        for (std::int64_t i = 0; i < length; ++i) total[i] += part[i];
    }
    std::copy(total, total + length, sum + at);
  }
}

std::vector<std::int64_t> part_starts(const char* name, const std::vector<std::int64_t>& counts,
                                      std::int64_t length, int ranks) {
  std::vector<std::int64_t> starts{0};
  for (std::int64_t n : counts) starts.push_back(starts.back() + n);
  const bool negative =
      std::any_of(counts.begin(), counts.end(), [](std::int64_t n) { return n < 0; });
  if (negative || counts.size() != static_cast<std::size_t>(ranks) || starts.back() != length)
    fail(
        "all_to_all: the {} counts [{}] must be {} numbers, none below 0, that add up to {} "
        "elements",
        name, fmt::join(counts, ", "), ranks, length);
  return starts;
}

void check_own_part(int rank, const std::vector<std::int64_t>& outgoing_counts,
                    const std::vector<std::int64_t>& incoming_counts) {
  const auto own = static_cast<std::size_t>(rank);
  if (outgoing_counts[own] != incoming_counts[own])
    fail(
        "all_to_all: rank {} sends itself {} elements and expects {}: a part must have one length "
        "on both sides",
        own, outgoing_counts[own], incoming_counts[own]);
}

}  // namespace longspan::parallel
