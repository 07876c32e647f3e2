#include "io/direct_writer.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace longspan::io {
namespace {

constexpr std::int64_t kPage = 4096;  // of memory and disk: the strictest alignment in use

Descriptor open_direct(const std::string& path) {
#ifdef O_DIRECT
  return Descriptor(::open(path.c_str(), O_WRONLY | O_DIRECT | O_CLOEXEC));
#else
  static_cast<void>(path);
  return Descriptor();
#endif
}

}  // namespace

void DirectWriter::Free::operator()(char* memory) const {
  std::free(memory);
}

DirectWriter::DirectWriter(const std::string& path)
    : file_(RawFile::open(path, RawFile::Mode::kWrite)), direct_(open_direct(path)) {
  if (!direct_) return;
  for (auto& piece : pieces_) {
    piece.reset(static_cast<char*>(std::aligned_alloc(kPage, static_cast<std::size_t>(kPiece))));
    if (!piece) throw std::bad_alloc();
  }
}

DirectWriter::~DirectWriter() {
  if (under_way_.valid()) under_way_.wait();
}

void DirectWriter::finish() {
  if (under_way_.valid()) under_way_.get();
}

void DirectWriter::write(const void* data, std::int64_t bytes, std::int64_t offset) {
  const auto* from = static_cast<const char*>(data);
  std::int64_t pages = offset % kPage == 0 ? bytes / kPage * kPage : 0;
  while (pages > 0) {
    const std::int64_t count = std::min(pages, kPiece);
    if (!pieces_[0]) break;
    char* piece = pieces_[next_].get();  // the other one may be under way
    std::memcpy(piece, from, static_cast<std::size_t>(count));
    finish();
    if (!direct_) break;
    under_way_ = std::async(std::launch::async,
                            [this, piece, count, offset] { write_piece(piece, count, offset); });
    next_ = 1 - next_;
    from += count, offset += count, bytes -= count, pages -= count;
  }
  if (bytes == 0) return;
  file_.write(from, bytes, offset);
  if (bytes >= kPage) file_.start_writeback(offset, bytes);
}

void DirectWriter::write_piece(const char* data, std::int64_t bytes, std::int64_t offset) {
  while (bytes > 0) {
    const auto n = ::pwrite(direct_.get(), data, static_cast<std::size_t>(bytes), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EINVAL) {  // not here after all, or not so small a rest
      direct_ = Descriptor();
      return file_.write(data, bytes, offset);
    }
    if (n < 0) fail_errno(file_.path(), "cannot write " + format_bytes(bytes), errno);
    data += n, offset += n, bytes -= n;
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
