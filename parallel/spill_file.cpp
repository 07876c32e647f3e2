#include "parallel/spill_file.hpp"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "parallel/error.hpp"
#include "parallel/trace.hpp"

namespace longspan {
namespace {

constexpr std::int64_t kChunk = std::int64_t{64} << 20;  // a write() moves at most 2 GiB anyway

bool is_full(int error) {
  return error == ENOSPC || error == EDQUOT || error == EFBIG;
}

[[noreturn]] void fail_full(const std::string& directory, std::int64_t bytes, int error) {
  struct statvfs disk = {};
  const bool known = statvfs(directory.c_str(), &disk) == 0;
  fail(
      "memory.offload=file: no room for {} bytes in {} ({}; {} are free): set "
      "memory.offload-directory to a larger local disk, or memory.offload=none",
      bytes, directory, std::strerror(error),
      known ? fmt::format("{} bytes", static_cast<std::uint64_t>(disk.f_bavail) * disk.f_frsize)
            : "unknown");
}

}  // namespace

SpillFile::SpillFile(const std::string& directory, std::int64_t bytes, Device& device)
    : directory_(directory.empty() ? "." : directory), device_(device) {
  std::string name = directory_ + "/longspan-offload-XXXXXX";
  file_ = mkostemp(name.data(), O_CLOEXEC);
  if (file_ < 0)
    fail(
        "memory.offload=file: cannot make a file in {}: {}: set memory.offload-directory to a "
        "directory of a local disk that can be written",
        directory_, std::strerror(errno));
  unlink(name.c_str());
  // Signals are for the threads that the program knows. That goes for SIGXFSZ too, which the
  // system sends to a thread that makes a file longer than `ulimit -f` allows: here the call fails.
  sigset_t all, before;
  sigfillset(&all);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&all, fault);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = 0;
  // Not posix_fallocate(): where the file system cannot reserve, that writes every block.
  std::thread([&] {
    if (bytes > 0 && fallocate(file_, 0, 0, bytes) != 0) error = errno;
  }).join();
  if (!is_full(error))
    thread_ = std::thread([this] {
      trace::name_thread("offload");
      work();
    });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!is_full(error)) return;
  close(file_);
  fail_full(directory_, bytes, error);
}

SpillFile::~SpillFile() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    jobs_.clear();
  }
  changed_.notify_all();
  thread_.join();
  close(file_);
}

void SpillFile::push(Group group) {
  wait_idle();
  Entry& entry = stack_.emplace_back();
  entry.offset = end_;
  for (const Buffer<float>& buffer : group) {
    entry.shapes.emplace_back(buffer.rows(), buffer.cols());
    end_ += buffer.size() * static_cast<std::int64_t>(sizeof(float));
  }
  bytes_written_ += end_ - entry.offset;
  entry.buffers = std::move(group);
  submit(entry, true);
}

void SpillFile::prefetch() {
  if (stack_.empty() || stack_.back().asked_for) return;
  wait_idle();  // it may be on its way out still
  Entry& entry = stack_.back();
  for (const auto& [rows, cols] : entry.shapes)
    entry.buffers.push_back(rows * cols == 0 ? Buffer<float>()
                                             : Buffer<float>(device_, rows, cols));
  entry.asked_for = true;
  submit(entry, false);
}

SpillFile::Group SpillFile::pop() {
  prefetch();
  wait_idle();
  Group group = std::move(stack_.back().buffers);
  end_ = stack_.back().offset;
  stack_.pop_back();
  return group;
}

void SpillFile::clear() {
  std::unique_lock lock(mutex_);
  jobs_.clear();
  changed_.wait(lock, [&] { return !busy_; });
  failure_ = nullptr;
  stack_.clear();
  end_ = 0;
}

void SpillFile::submit(Entry& entry, bool write) {
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back({&entry, write});
  }
  changed_.notify_all();
}

void SpillFile::wait_idle() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !busy_ && jobs_.empty(); });
  if (failure_) std::rethrow_exception(failure_);
}

void SpillFile::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
    if (stop_) return;
    const Job job = jobs_.front();
    jobs_.pop_front();
    busy_ = true;
    lock.unlock();
    std::exception_ptr failure;
    try {
      transfer(job);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    busy_ = false;
    if (failure && !failure_) failure_ = failure;
    changed_.notify_all();
  }
}

void SpillFile::transfer(const Job& job) {
  const trace::Span span(job.write ? "write activations" : "read activations");
  std::int64_t at = job.entry->offset;
  for (Buffer<float>& buffer : job.entry->buffers) {
    char* const data = reinterpret_cast<char*>(buffer.data());
    const std::int64_t bytes = buffer.size() * static_cast<std::int64_t>(sizeof(float));
    for (std::int64_t done = 0; done < bytes; done += kChunk) {
      const std::int64_t count = std::min(bytes - done, kChunk);
      if (device_.host_accessible()) {
        move(data + done, count, at + done, job.write);
        continue;
      }
      // In the order of the compute stream: behind what has written the buffer, or used its memory.
      const auto size = static_cast<std::size_t>(count);
      staging_.resize(std::max(staging_.size(), size));
      if (job.write) device_.copy(staging_.data(), data + done, size, device_.stream());
      move(staging_.data(), count, at + done, job.write);
      if (!job.write) device_.copy(data + done, staging_.data(), size, device_.stream());
    }
    at += bytes;
  }
  if (job.write) job.entry->buffers.clear();
}

void SpillFile::move(char* data, std::int64_t bytes, std::int64_t offset, bool write) {
  for (std::int64_t done = 0; done < bytes;) {
    const auto count = static_cast<std::size_t>(bytes - done);
    const ssize_t moved = write ? pwrite(file_, data + done, count, offset + done)
                                : pread(file_, data + done, count, offset + done);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0 && write && is_full(errno)) fail_full(directory_, bytes, errno);
    if (moved <= 0)
      fail(
          "memory.offload=file: {} of {} bytes {} {} failed: {}: check that disk, or set "
          "memory.offload-directory to another",
          write ? "writing" : "reading", bytes, write ? "to" : "from", directory_,
          moved < 0 ? std::strerror(errno) : "the file is shorter than what was written");
    done += moved;
  }
}

}  // namespace longspan
