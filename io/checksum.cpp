#include "io/checksum.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <new>

namespace longspan::io {

void free_checksum_state(void* state) {
  XXH3_freeState(static_cast<XXH3_state_t*>(state));
}

Checksum::Checksum() : state_(XXH3_createState()) {
  if (!state_) throw std::bad_alloc();
  XXH3_64bits_reset(static_cast<XXH3_state_t*>(state_.get()));
}

void Checksum::update(const void* data, std::size_t bytes) {
  if (bytes > 0) XXH3_64bits_update(static_cast<XXH3_state_t*>(state_.get()), data, bytes);
}

std::uint64_t Checksum::digest() const {
  return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state_.get()));
}

std::uint64_t checksum_of(const void* data, std::size_t bytes) {
  return XXH3_64bits(data, bytes);
}

void ChunkedChecksum::update(const void* data, std::int64_t bytes) {
  const auto* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const std::int64_t count = std::min(bytes, chunk_bytes_ - filled_);
    whole_.update(next, static_cast<std::size_t>(count));
    if (count == chunk_bytes_) {
      complete_.push_back(checksum_of(next, static_cast<std::size_t>(count)));
    } else {
      chunk_.update(next, static_cast<std::size_t>(count));
      filled_ += count;
      if (filled_ == chunk_bytes_) {
        complete_.push_back(chunk_.digest());
        chunk_ = Checksum();
        filled_ = 0;
      }
    }
    next += count;
    bytes -= count;
  }
}

std::vector<std::uint64_t> ChunkedChecksum::chunks() const {
  auto all = complete_;
  if (filled_ > 0) all.push_back(chunk_.digest());
  return all;
}

}  // namespace longspan::io
