/// The hash of every chunk of a block whose bytes come piece by piece.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "io/checksum.hpp"

namespace longspan::io {

class ChunkCheck {
 public:
  /// Bytes [at, at + bytes) of a block of `block_bytes` with a hash for every `chunk_bytes`: calls
  /// `found(number, hash)` for every chunk that ends in them. What is given begins with a chunk or
  /// goes on where the last call ended.
  template <class Found>
  void update(const char* data, std::int64_t bytes, std::int64_t at, std::int64_t chunk_bytes,
              std::int64_t block_bytes, Found&& found) {
    while (bytes > 0) {
      const std::int64_t number = at / chunk_bytes, begin = number * chunk_bytes;
      const std::int64_t end = std::min(begin + chunk_bytes, block_bytes);
      const std::int64_t part = std::min(bytes, end - at);
      const auto count = static_cast<std::size_t>(part);
      if (at == begin && part == end - begin) {
        found(number, checksum_of(data, count));
      } else {
        if (at == begin) hash_ = Checksum();
        hash_.update(data, count);
        if (at + part == end) found(number, hash_.digest());
      }
      data += part, at += part, bytes -= part;
    }
  }

 private:
  Checksum hash_;  ///< of the chunk that is not complete
};

}  // namespace longspan::io
