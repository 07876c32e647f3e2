/// How attention is cut into tasks for threads, and the memory a task works in.
#pragma once

#include <hwy/aligned_allocator.h>

#include <cstdint>

#include "model/kernels/cpu/attention_mask.hpp"
#include "parallel/error.hpp"

namespace longspan::model::cpu {

/// Query blocks [first_block, last_block), for all query heads of a key/value head, against key
/// groups [first_group, last_group).
struct AttentionTask {
  std::int64_t batch, kv_head, first_block, last_block, first_group, last_group;
};

/// Scratch memory of all threads, cut into 64-byte aligned parts. Nothing is touched before its
/// thread does.
class Scratch {
 public:
  Scratch(std::int64_t threads, std::int64_t floats_each)
      : each_((floats_each + 63) / 64 * 64), data_(hwy::AllocateAligned<float>(threads * each_)) {
    if (!data_)
      fail("attention: no memory for {} MiB of scratch on {} threads: lower the number of threads",
           threads * each_ * 4 >> 20, threads);
  }
  float* of(std::int64_t thread) { return data_.get() + thread * each_; }

 private:
  std::int64_t each_;
  hwy::AlignedFreeUniquePtr<float[]> data_;
};

/// Hands out parts of a thread's scratch; with a null base it measures how much is asked for.
class Carver {
 public:
  explicit Carver(float* base) : base_(base) {}
  float* take(std::int64_t floats) {
    float* const part = base_ ? base_ + used_ : nullptr;
    used_ += (floats + 15) / 16 * 16;
    return part;
  }
  std::int64_t used() const { return used_; }

 private:
  float* base_;
  std::int64_t used_ = 0;
};

/// Row length of a block of scores: an odd number of cache lines, so that a column of it does not
/// fall into few sets.
inline constexpr std::int64_t kScoreRow = kKeyGroup + 16;

/// Lanes of the widest vector of any target.
inline constexpr std::int64_t kWidestVector = 16;

/// Row length of packed queries, keys and values. Beyond 64 an odd number of cache lines: with a
/// power of two, 64 columns of all rows would share half of the first cache's sets.
inline std::int64_t row_size(std::int64_t head_size) {
  const std::int64_t lines = (head_size + kWidestVector - 1) / kWidestVector;
  return kWidestVector * (lines <= 4 ? lines : lines | 1);
}

}  // namespace longspan::model::cpu
