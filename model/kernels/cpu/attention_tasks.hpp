/// How attention is cut into tasks for threads, and the memory a task works in.
#pragma once

#include <hwy/aligned_allocator.h>
#include <hwy/cache_control.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "model/kernels/cpu/attention_mask.hpp"
#include "parallel/error.hpp"

namespace longspan::model::cpu {

/// Query blocks [first_block, last_block), for all query heads of a key/value head, against key
/// groups [first_group, last_group).
struct AttentionTask {
  std::int64_t batch, kv_head, first_block, last_block, first_group, last_group;
};

/// A chunk of a gradient, to which tasks add their shares one after another.
class Turn {
 public:
  void wait_for(std::int32_t turn) const {
    for (std::int32_t now = now_.load(std::memory_order_acquire); now != turn;
         now = now_.load(std::memory_order_acquire))
      now_.wait(now, std::memory_order_acquire);
  }
  void next() {
    now_.fetch_add(1, std::memory_order_release);
    now_.notify_all();
  }

 private:
  std::atomic<std::int32_t> now_{0};
};

struct OrderedTask {
  AttentionTask task;
  std::int64_t query_chunk, key_chunk;  ///< indices of the Turns
  std::int32_t query_turn, key_turn;
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

/// Rows of the caller's memory that are needed soon, last pushed first asked for. They lie far
/// apart, where the processor foresees nothing, and packing them would wait for each: so products
/// fetch a few lines with every register tile.
class RowsAhead {
 public:
  void clear() { count_ = 0; }
  /// Forgets the oldest if there are too many.
  void push(const float* first, std::int64_t row, std::int64_t rows, std::int64_t size) {
    if (rows <= 0) return;
    if (count_ == kMost) std::copy(ranges_ + 1, ranges_ + count_--, ranges_);
    ranges_[count_++] = {first, row - size, rows, size, 0};
  }
  void fetch() {
    for (int i = 0; i < kLinesEach && count_ > 0; ++i) {
      Range& range = ranges_[count_ - 1];
      hwy::Prefetch(range.next);
      range.next += 16;
      if ((range.column += 16) < range.size) continue;
      range.next += range.gap + range.size - range.column;
      range.column = 0;
      if (--range.rows == 0) --count_;
    }
  }

 private:
  static constexpr int kMost = 8, kLinesEach = 4;
  struct Range {
    const float* next;
    std::int64_t gap, rows, size, column;
  };
  Range ranges_[kMost];
  int count_ = 0;
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
