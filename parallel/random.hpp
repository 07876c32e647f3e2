/// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). A number is a function of
/// (key, counter) alone, so initial weights, dropout masks and data order do not depend on the mesh
/// or on history.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "parallel/philox.hpp"

namespace longspan {

using PhiloxBlock = std::array<std::uint32_t, 4>;

/// Four random words for `counter` under `key`. Pure; about 10 ns.
inline PhiloxBlock philox(std::uint64_t key, std::uint64_t counter_high,
                          std::uint64_t counter_low) {
  PhiloxBlock c;
  philox_words(key, counter_high, counter_low, c.data());
  return c;
}

/// Mixes `value` into `key` (SplitMix64 finaliser): derive_key(derive_key(seed, layer), site) and
/// so on.
inline std::uint64_t derive_key(std::uint64_t key, std::uint64_t value) {
  std::uint64_t z = key + 0x9E3779B97F4A7C15ull * (value + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

/// FNV-1a of a name, to derive a key from it.
inline std::uint64_t hash_name(std::string_view name) {
  std::uint64_t h = 0xcbf29ce484222325ull;
  for (unsigned char c : name) h = (h ^ c) * 0x100000001b3ull;
  return h;
}

/// (0, 1], 24 bits.
inline float uniform_from(std::uint32_t word) {
  return (static_cast<float>(word >> 8) + 1.0f) * 0x1.0p-24f;
}

/// Standard normal number `index` under `key` (Box-Muller on one Philox block per pair).
inline float normal_at(std::uint64_t key, std::uint64_t index) {
  const PhiloxBlock w = philox(key, 0, index >> 1);
  const double u = (static_cast<double>((std::uint64_t{w[0]} << 21) ^ w[1]) + 1.0) * 0x1.0p-53;
  const double v = static_cast<double>((std::uint64_t{w[2]} << 21) ^ w[3]) * 0x1.0p-53;
  const double radius = std::sqrt(-2.0 * std::log(u));
  const double angle = 6.283185307179586 * v;
  return static_cast<float>(radius * ((index & 1) ? std::sin(angle) : std::cos(angle)));
}

}  // namespace longspan
