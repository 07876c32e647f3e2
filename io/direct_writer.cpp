#include "io/direct_writer.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace longspan::io {
namespace {

/// Bytes that are hashed and then copied out of the core's own cache.
constexpr std::int64_t kCached = std::int64_t{256} << 10;

}  // namespace

DirectWriter::DirectWriter(const std::string& path, bool direct)
    : file_(RawFile::open(path, RawFile::Mode::kWrite)),
      direct_(direct ? open_direct(path, RawFile::Mode::kWrite) : Descriptor()),
      direct_works_(static_cast<bool>(direct_)),
      buffer_(kDirectPieces) {
  for (std::size_t i = 0; i < buffer_.pieces(); ++i) free_.push_back(buffer_.piece(i));
}

DirectWriter::~DirectWriter() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

/// A piece to fill, as soon as there is one.
char* DirectWriter::free_piece() {
  while (threads_.size() < kDirectRequests)
    threads_.push_back(thread_without_signals([this] { work(); }));
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !free_.empty(); });
  if (failure_) std::rethrow_exception(failure_);
  char* piece = free_.back();
  free_.pop_back();
  return piece;
}

void DirectWriter::finish() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return waiting_.empty() && under_way_ == 0; });
  if (failure_) std::rethrow_exception(failure_);
}

void DirectWriter::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || !waiting_.empty(); });
    if (stop_) return;
    const Request request = waiting_.front();
    waiting_.pop_front();
    if (!failure_) {
      ++under_way_;
      lock.unlock();
      std::exception_ptr failure;
      try {
        write_piece(request);
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      --under_way_;
      if (!failure_) failure_ = failure;
    }
    free_.push_back(request.data);
    changed_.notify_all();
  }
}

void DirectWriter::write(const void* data, std::int64_t bytes, std::int64_t offset,
                         ChunkedChecksum* hash) {
  {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
  }
  const auto* from = static_cast<const char*>(data);
  std::int64_t pages = offset % kPageBytes == 0 ? bytes / kPageBytes * kPageBytes : 0;
  while (pages > 0 && direct_works_) {
    const std::int64_t count = std::min(pages, kPiece);
    char* piece = free_piece();
    for (std::int64_t done = 0; done < count; done += kCached) {
      const std::int64_t part = std::min(kCached, count - done);
      if (hash != nullptr) hash->update(from + done, part);
      std::memcpy(piece + done, from + done, static_cast<std::size_t>(part));
    }
    {
      const std::lock_guard lock(mutex_);
      waiting_.push_back({piece, count, offset});
    }
    changed_.notify_all();
    from += count, offset += count, bytes -= count, pages -= count;
  }
  while (bytes > 0) {
    const std::int64_t count = std::min(bytes, kPiece);
    if (hash != nullptr) hash->update(from, count);
    file_.write(from, count, offset);
    if (count >= kPageBytes) file_.start_writeback(offset, count);
    from += count, offset += count, bytes -= count;
  }
}

void DirectWriter::write_piece(Request request) {
  while (request.bytes > 0) {
    ssize_t n = -1;
    if (direct_works_) {
      n = ::pwrite(direct_.get(), request.data, static_cast<std::size_t>(request.bytes),
                   request.offset);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno != EINVAL)
        fail_errno(file_.path(), "cannot write " + format_bytes(request.bytes), errno);
    }
    if (n < 0) {  // not here after all, or not so small a rest
      direct_works_ = false;
      return file_.write(request.data, request.bytes, request.offset);
    }
    request.data += n, request.offset += n, request.bytes -= n;
  }
}

void DirectWriter::sync() {
  finish();
  file_.sync();
}

void DirectWriter::close() {
  finish();
  direct_ = Descriptor();
  file_.close();
}

}  // namespace longspan::io
