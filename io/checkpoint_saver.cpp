#include "io/checkpoint_saver.hpp"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <set>
#include <utility>

#include "io/file.hpp"
#include "parallel/agree.hpp"
#include "parallel/host_copy.hpp"
#include "parallel/trace.hpp"

namespace longspan::io {
namespace {

constexpr std::int64_t kAlignment = 64;  // of a block in the staging buffer

std::int64_t staged_bytes(const ShardedArray& array) {
  return (array.bytes() + kAlignment - 1) / kAlignment * kAlignment;
}

/// What devices were told to write into the blocks is there on return.
void finish_writing(const std::vector<ShardedArray>& arrays) {
  std::set<Device*> devices;
  for (const ShardedArray& array : arrays)
    if (array.device != nullptr) devices.insert(array.device);
  for (Device* device : devices) device->stream().synchronize();
}

}  // namespace

CheckpointSaver::CheckpointSaver(std::string directory, std::int64_t keep, const Communicator& comm,
                                 const Fence* fence)
    : directory_(std::move(directory)),
      keep_(keep),
      fence_(fence),
      comm_(comm.duplicate_for_background()) {
  // Signals are for the threads that the program knows.
  sigset_t all, before;
  sigfillset(&all);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&all, fault);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] {
    trace::name_thread("checkpoint");
    work();
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

CheckpointSaver::~CheckpointSaver() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void CheckpointSaver::reserve(const std::vector<ShardedArray>& arrays) {
  std::int64_t bytes = 0;
  for (const ShardedArray& array : arrays) bytes += staged_bytes(array);
  if (bytes <= staging_.size()) return;
  staging_ = Buffer<char>(cpu_device(), bytes);
  // The system gives pages when they are first touched: not in the middle of a step.
  std::memset(staging_.data(), 0, static_cast<std::size_t>(bytes));
}

void CheckpointSaver::start(const std::vector<ShardedArray>& arrays, CheckpointFacts facts) {
  wait();
  // Agreed on the saver's own communicator, which is idle now: either all write or none does.
  agree(comm_, [&] {
    reserve(arrays);
    finish_writing(arrays);
  });
  {
    const std::lock_guard lock(mutex_);
    arrays_ = arrays;
    facts_ = std::move(facts);
    outcome_.reset();
    waited_ = 0;
    busy_ = copying_ = true;
  }
  changed_.notify_all();
}

void CheckpointSaver::copy_blocks(std::vector<ShardedArray>& arrays) {
  const trace::Span span("copy for the checkpoint",
                         {{"bytes", static_cast<double>(staging_.size())}});
  char* next = staging_.data();
  for (ShardedArray& array : arrays) {
    if (array.bytes() > 0 && array.data != nullptr) {
      const auto bytes = static_cast<std::size_t>(array.bytes());
      if (on_host(array))
        std::memcpy(next, array.data, bytes);
      else
        array.device->copy(next, array.data, bytes, array.device->copy_stream());
      array.data = next;
      array.device = nullptr;
    }
    next += staged_bytes(array);
  }
}

void CheckpointSaver::wait_for_copy() {
  const auto begin = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  if (!copying_) return;
  changed_.wait(lock, [&] { return !copying_; });
  waited_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void CheckpointSaver::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !busy_; });
  if (broken_) std::rethrow_exception(broken_);
}

std::optional<CheckpointSaver::Outcome> CheckpointSaver::take() {
  const std::lock_guard lock(mutex_);
  if (broken_) std::rethrow_exception(broken_);
  return std::exchange(outcome_, std::nullopt);
}

std::string CheckpointSaver::save(const std::vector<ShardedArray>& arrays,
                                  const CheckpointFacts& facts) {
  wait();
  if (std::all_of(arrays.begin(), arrays.end(), on_host)) return write(arrays, facts);
  std::vector<ShardedArray> staged = arrays;
  agree(comm_, [&] {
    reserve(arrays);
    finish_writing(arrays);
    copy_blocks(staged);
  });
  return write(staged, facts);
}

std::string CheckpointSaver::write(const std::vector<ShardedArray>& arrays,
                                   const CheckpointFacts& facts) {
  agree(comm_, [&] {
    // Made anew it would not be the one that holds the other checkpoints, and maybe not be on the
    // same disk: an unmounted file system leaves an empty folder, or none.
    if (comm_.rank() == 0 && !is_directory(parent_path(directory_)))
      fail("{}: this folder is gone: bring it back, or mount its file system again",
           parent_path(directory_));
  });
  const trace::Span span("write the checkpoint");
  std::string path = write_checkpoint(directory_, arrays, facts, comm_, fence_);
  agree(comm_, [&] {
    if (comm_.rank() == 0) prune_checkpoints(directory_, keep_, fence_);
  });
  return path;
}

void CheckpointSaver::work() {
  using Clock = std::chrono::steady_clock;
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || busy_; });
    if (!busy_) return;  // what was started is finished before the end
    lock.unlock();
    const auto begin = Clock::now();
    Outcome outcome;
    outcome.step = facts_.step;
    std::exception_ptr broken;
    const auto attempt = [&](auto&& work) {
      if (broken) return;
      try {
        work();
      } catch (...) {
        broken = std::current_exception();
      }
    };
    attempt([&] { copy_blocks(arrays_); });
    lock.lock();
    copying_ = false;
    lock.unlock();
    changed_.notify_all();
    attempt([&] {
      try {
        outcome.path = write(arrays_, facts_);
      } catch (const AgreedError& e) {
        outcome.failure = e.what();
        // Every rank is here.
        outcome.fenced = comm_.broadcast(std::int64_t{fence_ != nullptr && fence_->lost()}, 0) != 0;
      }
    });
    outcome.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    lock.lock();
    busy_ = false;
    outcome.waited = waited_;
    outcome_ = std::move(outcome);
    broken_ = broken;
    changed_.notify_all();
  }
}

}  // namespace longspan::io
