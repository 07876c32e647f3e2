/// Reads parts of files past the page cache (O_DIRECT) where the file system can, in order and
/// ahead of who uses them: while one piece is looked at the next ones are on their way. Nobody's
/// cached files are pushed out, and memory stays at kDirectPieces pieces however much is read.
/// Nothing here communicates. Read next: direct_buffer.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/direct_buffer.hpp"
#include "io/file.hpp"

namespace longspan::io {

class DirectReader {
 public:
  /// Bytes [begin, end) of one of the files.
  struct Extent {
    std::size_t file = 0;
    std::int64_t begin = 0, end = 0;
  };
  /// Some bytes of an extent, `at` of them after its first one; valid until the next ones come.
  struct Part {
    std::size_t extent = 0;
    std::int64_t at = 0, bytes = 0;
    const char* data = nullptr;  ///< null if they could not be read
    std::exception_ptr failure;  ///< then says why: an Error (damaged) that names the file
  };
  using Consume = std::function<void(const Part&)>;

  /// Opens nothing yet. `direct` false: through the cache, as where the file system refuses the
  /// other way.
  explicit DirectReader(std::vector<std::string> paths, bool direct = true);
  ~DirectReader();

  /// Every extent in this order and every byte of it in order, cut at multiples of kCut from the
  /// extent's first byte. What cannot be read is a part too. What `consume` throws ends it. Extents
  /// that lie close together in a file are read at once, so they had better come in the order of
  /// the file.
  void read(std::span<const Extent> extents, const Consume& consume);

  /// Whether everything so far was read past the cache.
  bool direct() const;
  /// Bytes of all requests so far: of the extents, the pages at their ends, and small gaps.
  std::int64_t bytes_requested() const;

  static constexpr std::int64_t kPiece = DirectBuffer::kPiece;
  static constexpr std::int64_t kCut = std::int64_t{64} << 10;

 private:
  struct File;
  struct Piece;
  struct Slice;
  struct Plan;
  class Ahead;

  static Plan plan(std::span<const Extent> extents);
  std::shared_ptr<const File> open(std::size_t number);
  void read_piece(const Piece& piece, char* out);
  std::exception_ptr read_slice(std::size_t file, const Slice& slice, char* out);

  const std::vector<std::string> paths_;
  const bool allowed_;
  std::optional<DirectBuffer> buffer_;

  mutable std::mutex mutex_;  ///< of what follows: several threads read
  std::map<std::size_t, std::shared_ptr<const File>> open_;
  bool all_direct_ = true;
  std::int64_t bytes_requested_ = 0;
};

}  // namespace longspan::io
