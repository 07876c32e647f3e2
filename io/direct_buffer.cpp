#include "io/direct_buffer.hpp"

#include <fcntl.h>
#include <sys/mman.h>

#include <cstddef>
#include <new>

namespace longspan::io {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t piece_bytes(std::size_t pieces) {
  return pieces * static_cast<std::size_t>(DirectBuffer::kPiece);
}

}  // namespace

DirectBuffer::DirectBuffer(std::size_t pieces) : pieces_(pieces) {
  // Not malloc: what it gets back it may keep.
  void* memory = ::mmap(nullptr, piece_bytes(pieces) + kHugePage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mapped_ = static_cast<char*>(memory);
  const auto over = reinterpret_cast<std::uintptr_t>(mapped_) % kHugePage;
  begin_ = mapped_ + (over == 0 ? 0 : kHugePage - over);
#ifdef MADV_HUGEPAGE
  ::madvise(begin_, piece_bytes(pieces), MADV_HUGEPAGE);
#endif
}

DirectBuffer::~DirectBuffer() {
  ::munmap(mapped_, piece_bytes(pieces_) + kHugePage);
}

Descriptor open_direct(const std::string& path, RawFile::Mode mode) {
#ifdef O_DIRECT
  const int access = mode == RawFile::Mode::kRead ? O_RDONLY : O_WRONLY;
  return Descriptor(::open(path.c_str(), access | O_DIRECT | O_CLOEXEC));
#else
  static_cast<void>(path);
  static_cast<void>(mode);
  return Descriptor();
#endif
}

}  // namespace longspan::io
