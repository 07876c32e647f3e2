/// XXH3-64, the checksum of our files: faster than any disk (8 GB/s and more on one core), strong
/// enough against accidents, not against an attacker.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "parallel/handle.hpp"

namespace longspan::io {

void free_checksum_state(void* state);

/// The hash of all bytes given to update(), however they were cut.
class Checksum {
 public:
  Checksum();
  void update(const void* data, std::size_t bytes);
  void update(std::string_view text) { update(text.data(), text.size()); }
  void update(std::uint64_t value) { update(&value, sizeof value); }
  std::uint64_t digest() const;

 private:
  Handle<void*, nullptr, free_checksum_state> state_;
};

/// XXH3-64 of one run of bytes.
std::uint64_t checksum_of(const void* data, std::size_t bytes);

/// The hash of all bytes and of every chunk of them, in one pass over memory: a chunk is in the
/// cache when it is hashed the second time.
class ChunkedChecksum {
 public:
  explicit ChunkedChecksum(std::int64_t chunk_bytes) : chunk_bytes_(chunk_bytes) {}
  void update(const void* data, std::int64_t bytes);
  std::uint64_t digest() const { return whole_.digest(); }
  /// Of each chunk so far, the last one maybe shorter.
  std::vector<std::uint64_t> chunks() const;

 private:
  std::int64_t chunk_bytes_, filled_ = 0;  ///< of the chunk that is not complete
  Checksum whole_, chunk_;
  std::vector<std::uint64_t> complete_;
};

}  // namespace longspan::io
