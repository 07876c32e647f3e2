#include "io/direct_reader.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>

#include "parallel/error.hpp"

namespace longspan::io {
namespace {

constexpr std::size_t kOpenFiles = 32;  // two descriptors each; limits on them may be low
/// A disk of 1 GB/s reads so much in the time that a request of its own would take.
constexpr std::int64_t kGap = std::int64_t{64} << 10;

constexpr std::int64_t page_of(std::int64_t byte) {
  return byte / kPageBytes * kPageBytes;
}

}  // namespace

struct DirectReader::File {
  RawFile cached;
  Descriptor direct;
};

/// One request: bytes [begin, end) of a file, begin at a page, and the parts of extents in it.
struct DirectReader::Piece {
  std::size_t file = 0;
  std::int64_t begin = 0, end = 0;
  std::size_t first_slice = 0, last_slice = 0;
};

struct DirectReader::Slice {
  std::size_t extent = 0;
  std::int64_t at = 0, bytes = 0;  ///< as of a Part
  std::int64_t in_file = 0;
};

struct DirectReader::Plan {
  std::vector<Piece> pieces;
  std::vector<Slice> slices;
};

DirectReader::Plan DirectReader::plan(std::span<const Extent> extents) {
  Plan plan;
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const Extent& extent = extents[i];
    for (std::int64_t from = extent.begin; from < extent.end;) {
      const auto fits = [&](std::int64_t begin) {
        const std::int64_t room = begin + kPiece - from, rest = extent.end - from;
        return rest <= room ? rest : room / kCut * kCut;
      };
      const bool near = !plan.pieces.empty() && plan.pieces.back().file == extent.file &&
                        from >= plan.pieces.back().begin && from <= plan.pieces.back().end + kGap &&
                        fits(plan.pieces.back().begin) > 0;
      if (!near)
        plan.pieces.push_back(
            {extent.file, page_of(from), from, plan.slices.size(), plan.slices.size()});
      Piece& piece = plan.pieces.back();
      const std::int64_t count = fits(piece.begin);
      plan.slices.push_back({i, from - extent.begin, count, from});
      piece.end = std::max(piece.end, from + count);
      piece.last_slice = plan.slices.size();
      from += count;
    }
  }
  return plan;
}

/// Threads that read the pieces of a plan into the buffer, as far ahead as it has room.
class DirectReader::Ahead {
 public:
  Ahead(DirectReader& reader, const std::vector<Piece>& pieces) : reader_(reader), pieces_(pieces) {
    if (pieces.size() < 2) return;
    try {
      while (threads_.size() < kDirectRequests)
        threads_.push_back(thread_without_signals([this] { work(); }));
    } catch (const std::system_error&) {
      // Limits on threads may be low: fewer of them, or none, do the same.
    }
  }
  ~Ahead() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  Ahead(const Ahead&) = delete;
  Ahead& operator=(const Ahead&) = delete;

  /// Of the next piece, when it has been read; why not, if it could not be.
  std::exception_ptr next(char*& data) {
    const std::size_t slot = taken_ % kDirectPieces;
    data = reader_.buffer_->piece(slot);
    if (threads_.empty()) return read(taken_);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ready_[slot]; });
    return failure_[slot];
  }
  /// The last piece is not needed any more.
  void done() {
    {
      const std::lock_guard lock(mutex_);
      ready_[taken_ % kDirectPieces] = false;
      ++taken_;
    }
    changed_.notify_all();
  }

 private:
  std::exception_ptr read(std::size_t number) {
    try {
      reader_.read_piece(pieces_[number], reader_.buffer_->piece(number % kDirectPieces));
      return nullptr;
    } catch (...) {
      return std::current_exception();
    }
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] {
        return stop_ || begun_ == pieces_.size() || begun_ < taken_ + kDirectPieces;
      });
      if (stop_ || begun_ == pieces_.size()) return;
      const std::size_t number = begun_++;
      lock.unlock();
      const std::exception_ptr failure = read(number);
      lock.lock();
      failure_[number % kDirectPieces] = failure;
      ready_[number % kDirectPieces] = true;
      changed_.notify_all();
    }
  }

  DirectReader& reader_;
  const std::vector<Piece>& pieces_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t begun_ = 0, taken_ = 0;
  std::array<bool, kDirectPieces> ready_ = {};
  std::array<std::exception_ptr, kDirectPieces> failure_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

DirectReader::DirectReader(std::vector<std::string> paths, bool direct)
    : paths_(std::move(paths)), allowed_(direct) {}
DirectReader::~DirectReader() = default;

void DirectReader::read(std::span<const Extent> extents, const Consume& consume) {
  const Plan todo = plan(extents);
  if (todo.pieces.empty()) return;
  if (!buffer_) buffer_.emplace(kDirectPieces);
  Ahead ahead(*this, todo.pieces);
  for (const Piece& piece : todo.pieces) {
    char* data = nullptr;
    const std::exception_ptr failure = ahead.next(data);
    for (std::size_t i = piece.first_slice; i < piece.last_slice; ++i) {
      const auto& slice = todo.slices[i];
      char* at = data + (slice.in_file - piece.begin);
      // Only the parts that are bad themselves are: the others can be read alone.
      const std::exception_ptr of_slice = failure ? read_slice(piece.file, slice, at) : nullptr;
      consume({slice.extent, slice.at, slice.bytes, of_slice ? nullptr : at, of_slice});
    }
    ahead.done();
  }
}

std::shared_ptr<const DirectReader::File> DirectReader::open(std::size_t number) {
  const std::lock_guard lock(mutex_);
  if (const auto found = open_.find(number); found != open_.end()) return found->second;
  if (open_.size() >= kOpenFiles) open_.clear();  // those in use stay open
  const std::string& path = paths_[number];
  auto file = std::make_shared<const File>(
      File{RawFile::open(path, RawFile::Mode::kRead),
           allowed_ ? open_direct(path, RawFile::Mode::kRead) : Descriptor()});
  open_[number] = file;
  return file;
}

void DirectReader::read_piece(const Piece& piece, char* out) {
  const auto file = open(piece.file);
  const std::int64_t bytes = piece.end - piece.begin;
  // Whole pages are asked for; at the end of a file fewer come.
  const std::int64_t pages = page_of(bytes + kPageBytes - 1);
  std::int64_t done = 0;
  bool direct = static_cast<bool>(file->direct);
  while (direct && done < bytes && done % kPageBytes == 0) {
    const auto n = ::pread(file->direct.get(), out + done, static_cast<std::size_t>(pages - done),
                           piece.begin + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EINVAL)
      fail_damaged("{}: cannot read at byte {}: {}", paths_[piece.file], piece.begin + done,
                   std::strerror(errno));
    if (n < 0) direct = false;  // not here after all
    if (n <= 0) break;
    done += n;
  }
  // Also what is behind an end in the middle of a page: there is nothing, and it says so.
  if (done < bytes) file->cached.read(out + done, bytes - done, piece.begin + done);
  const std::lock_guard lock(mutex_);
  all_direct_ = all_direct_ && direct;
  bytes_requested_ += pages;
}

std::exception_ptr DirectReader::read_slice(std::size_t file, const Slice& slice, char* out) {
  try {
    open(file)->cached.read(out, slice.bytes, slice.in_file);
    return nullptr;
  } catch (...) {
    return std::current_exception();
  }
}

bool DirectReader::direct() const {
  const std::lock_guard lock(mutex_);
  return all_direct_;
}

std::int64_t DirectReader::bytes_requested() const {
  const std::lock_guard lock(mutex_);
  return bytes_requested_;
}

}  // namespace longspan::io
