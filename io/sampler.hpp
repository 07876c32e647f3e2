/// The order of the data: which window of tokens a sample is, as a function of (seed, sample
/// number) alone. No index array, nothing to save but the number of the next sample, and no
/// dependence on the mesh.
#pragma once

#include <cstdint>

namespace longspan::io {

/// A bijection of [0, size): four Feistel rounds on the next power of four, with cycle walking
/// until the result is inside.
class FeistelPermutation {
 public:
  FeistelPermutation(std::uint64_t key, std::int64_t size);
  std::int64_t operator()(std::int64_t index) const;  ///< index in [0, size)
  std::int64_t inverse(std::int64_t index) const;

 private:
  std::uint64_t key_;
  std::int64_t size_;
  int half_bits_;
};

/// Sample i of a run: epoch i / windows, window permutation_of(seed, epoch)(i % windows). Window w
/// is the tokens [w * S, w * S + S] of the split (S inputs and, one further, S targets), so windows
/// do not overlap.
class Sampler {
 public:
  /// Throws Error (usage) if the split is shorter than one sequence and its last target.
  Sampler(std::uint64_t seed, std::int64_t split_tokens, std::int64_t sequence_length);
  std::int64_t windows() const { return windows_; }
  std::int64_t epoch(std::int64_t sample) const { return sample / windows_; }
  /// First token of the sample, counted from the beginning of the split.
  std::int64_t first_token(std::int64_t sample) const;

 private:
  std::uint64_t seed_;
  std::int64_t sequence_length_;
  std::int64_t windows_;
};

}  // namespace longspan::io
