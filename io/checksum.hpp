/// XXH3-64, the checksum of our files: faster than any disk (8 GB/s and more on one core), strong
/// enough against accidents, not against an attacker.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

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

}  // namespace longspan::io
