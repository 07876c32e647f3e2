#include "io/sampler.hpp"

#include <bit>
#include <cassert>

#include "parallel/error.hpp"
#include "parallel/random.hpp"

namespace longspan::io {
namespace {

constexpr int kRounds = 4;

std::uint64_t round_function(std::uint64_t key, int round, std::uint64_t half) {
  return derive_key(key ^ (static_cast<std::uint64_t>(round) << 56), half);
}

}  // namespace

FeistelPermutation::FeistelPermutation(std::uint64_t key, std::int64_t size)
    : key_(key),
      size_(size),
      half_bits_((std::bit_width(static_cast<std::uint64_t>(size) - 1) + 1) / 2) {
  assert(size >= 1);
}

// The domain is the next power of four, so it is less than four times the size, and a walk takes
// less than four rounds of the cipher on average. It ends because the cipher is a bijection:
// following it from an index inside leads back inside.
std::int64_t FeistelPermutation::operator()(std::int64_t index) const {
  assert(index >= 0 && index < size_);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  std::uint64_t value = static_cast<std::uint64_t>(index);
  do {
    std::uint64_t left = value >> half_bits_, right = value & mask;
    for (int round = 0; round < kRounds; ++round) {
      const std::uint64_t next = left ^ (round_function(key_, round, right) & mask);
      left = right;
      right = next;
    }
    value = (left << half_bits_) | right;
  } while (value >= static_cast<std::uint64_t>(size_));
  return static_cast<std::int64_t>(value);
}

std::int64_t FeistelPermutation::inverse(std::int64_t index) const {
  assert(index >= 0 && index < size_);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  std::uint64_t value = static_cast<std::uint64_t>(index);
  do {
    std::uint64_t left = value >> half_bits_, right = value & mask;
    for (int round = kRounds - 1; round >= 0; --round) {
      const std::uint64_t previous = right ^ (round_function(key_, round, left) & mask);
      right = left;
      left = previous;
    }
    value = (left << half_bits_) | right;
  } while (value >= static_cast<std::uint64_t>(size_));
  return static_cast<std::int64_t>(value);
}

Sampler::Sampler(std::uint64_t seed, std::int64_t split_tokens, std::int64_t sequence_length)
    : seed_(derive_key(seed, hash_name("data order"))), sequence_length_(sequence_length) {
  if (sequence_length < 1)
    fail_usage("data.sequence-length is {}: it must be at least 1 token", sequence_length);
  windows_ = (split_tokens - 1) / sequence_length;
  if (split_tokens < 1 || windows_ < 1)
    fail_usage(
        "the split has {} tokens, fewer than one sequence and its last target ({} + 1): shorten "
        "data.sequence-length or "
        "prepare more data",
        split_tokens, sequence_length);
}

std::int64_t Sampler::first_token(std::int64_t sample) const {
  assert(sample >= 0);
  const std::uint64_t key = derive_key(seed_, static_cast<std::uint64_t>(epoch(sample)));
  return FeistelPermutation(key, windows_)(sample % windows_) * sequence_length_;
}

}  // namespace longspan::io
