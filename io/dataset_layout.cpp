#include "io/dataset_layout.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstring>
#include <vector>

namespace longspan::io {

std::uint64_t xxh3(const void* data, std::size_t bytes) {
  return XXH3_64bits(data, bytes);
}

std::string content_uuid(const DatasetFacts& facts, std::span<const std::uint64_t> block_hashes) {
  XXH3_state_t* const state = XXH3_createState();
  XXH3_128bits_reset(state);
  // Every part is preceded by its length, so that no two descriptions run together to the same
  // bytes.
  const auto number = [&](std::uint64_t value) {
    XXH3_128bits_update(state, &value, sizeof value);
  };
  const auto text = [&](std::string_view value) {
    number(value.size());
    XXH3_128bits_update(state, value.data(), value.size());
  };
  const auto numbers = [&](std::span<const std::uint64_t> values) {
    number(values.size());
    XXH3_128bits_update(state, values.data(), values.size_bytes());
  };
  text(name_of(facts.dtype));
  number(static_cast<std::uint64_t>(facts.vocabulary));
  text(facts.tokenizer);
  numbers(facts.document_offsets);
  number(static_cast<std::uint64_t>(facts.train_documents));
  numbers(block_hashes);
  XXH128_canonical_t bytes;
  XXH128_canonicalFromHash(&bytes, XXH3_128bits_digest(state));
  XXH3_freeState(state);
  bytes.digest[6] = static_cast<unsigned char>((bytes.digest[6] & 0x0f) | 0x80);
  bytes.digest[8] = static_cast<unsigned char>((bytes.digest[8] & 0x3f) | 0x80);
  std::string uuid;
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) uuid += '-';
    constexpr const char* kHex = "0123456789abcdef";
    uuid += kHex[bytes.digest[i] >> 4];
    uuid += kHex[bytes.digest[i] & 15];
  }
  return uuid;
}

}  // namespace longspan::io
