#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

#include "parallel/device.hpp"
#include "parallel/error.hpp"
#include "parallel/host_arena.hpp"

namespace longspan {
namespace {

constexpr std::size_t kAlignment = 64;
/// Blocks from here on lie in the arena of huge pages: far fewer TLB misses in a matrix product,
/// and what is given back really leaves the process (malloc would keep it in its heap).
constexpr std::size_t kArenaBytes = std::size_t{4} << 20;
/// Freed memory that may be kept beyond the largest use so far; at least 1/16 of that use.
constexpr std::size_t kCacheSlackBytes = std::size_t{4} << 20;

std::size_t capacity_for(std::size_t bytes) {
  const std::size_t unit = bytes >= kArenaBytes ? HostArena::kPage : kAlignment;
  return (bytes + unit - 1) / unit * unit;
}

class CpuStream final : public Stream {
 public:
  void synchronize() override {}
};

class CpuDevice final : public Device {
 public:
  std::string name() const override { return "cpu"; }
  Stream& stream() override { return stream_; }
  bool host_accessible() const override { return true; }

  void* allocate(std::size_t bytes) override {
    if (bytes == 0) return nullptr;
    const std::lock_guard lock(mutex_);
    // Blocks are counted by what was asked for, the bound of what is kept by what they occupy.
    const std::size_t wanted = capacity_for(bytes);
    const Block block =
        wanted >= kArenaBytes ? take_large(wanted, bytes) : take_small(wanted, bytes);
    live_.emplace(block.memory, block.capacity);
    bytes_in_use_ += static_cast<std::int64_t>(bytes);
    peak_bytes_ = std::max(peak_bytes_, bytes_in_use_);
    return block.memory;
  }

  void release(void* memory, std::size_t bytes) noexcept override {
    if (memory == nullptr) return;
    const std::lock_guard lock(mutex_);
    const auto entry = live_.find(memory);
    const std::size_t capacity = entry->second;
    live_.erase(entry);
    occupied_ -= capacity;
    bytes_in_use_ -= static_cast<std::int64_t>(bytes);
    if (capacity >= kArenaBytes) {
      arena_.release(memory, capacity);
      return;
    }
    small_ -= capacity;
    cached_ += capacity;
    cache_.emplace(capacity, Cached{memory, ++releases_});
  }

  void copy(void* to, const void* from, std::size_t bytes, Stream&) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void fill_zero(void* to, std::size_t bytes, Stream&) override {
    if (bytes > 0) std::memset(to, 0, bytes);
  }

  std::int64_t bytes_in_use() const override {
    const std::lock_guard lock(mutex_);
    return bytes_in_use_;
  }
  std::int64_t peak_bytes() const override {
    const std::lock_guard lock(mutex_);
    return peak_bytes_;
  }
  void reset_peak() override {
    const std::lock_guard lock(mutex_);
    peak_bytes_ = bytes_in_use_;
  }

 private:
  struct Block {
    void* memory;
    std::size_t capacity;
  };
  struct Cached {
    void* memory;
    std::uint64_t released;  ///< when: the oldest goes first
  };

  Block take_large(std::size_t capacity, std::size_t bytes) {
    void* memory = arena_.allocate(capacity);
    if (memory == nullptr) {
      keep_at_most(0);
      memory = arena_.allocate(capacity);
    }
    if (memory == nullptr) none_left(bytes);
    occupy(capacity);
    return {memory, capacity};
  }

  Block take_small(std::size_t capacity, std::size_t bytes) {
    const auto fit = cache_.lower_bound(capacity);
    if (fit != cache_.end() && fit->first <= capacity + capacity / 8) {
      const Block block{fit->second.memory, fit->first};
      cached_ -= block.capacity;
      cache_.erase(fit);
      small_ += block.capacity;
      occupy(block.capacity);
      return block;
    }
    small_ += capacity;
    occupy(capacity);
    void* memory = std::aligned_alloc(kAlignment, capacity);
    if (memory == nullptr) {
      keep_at_most(0);
      memory = std::aligned_alloc(kAlignment, capacity);
    }
    if (memory == nullptr) {
      small_ -= capacity;
      occupied_ -= capacity;
      none_left(bytes);
    }
    return {memory, capacity};
  }

  /// The process should stay as large as its largest need, not grow to the sum of every size ever
  /// used.
  void occupy(std::size_t capacity) {
    occupied_ += capacity;
    largest_occupied_ = std::max(largest_occupied_, occupied_);
    keep_at_most(largest_occupied_ + std::max(largest_occupied_ / 16, kCacheSlackBytes));
  }

  /// Gives freed memory back until at most `bytes` are held or all of it is gone.
  void keep_at_most(std::size_t bytes) {
    while (!cache_.empty() && arena_.held_bytes() + small_ + cached_ > bytes) drop_oldest();
    arena_.shrink(bytes > small_ ? bytes - small_ : 0);
  }

  [[noreturn]] void none_left(std::size_t bytes) const {
    fail(
        "no memory for {} bytes on the cpu, {} bytes are in use: use shorter sequences, smaller "
        "micro-batches, "
        "memory.keep=block or more ranks",
        bytes, bytes_in_use_);
  }

  void drop_oldest() {
    const auto oldest = std::min_element(
        cache_.begin(), cache_.end(),
        [](const auto& x, const auto& y) { return x.second.released < y.second.released; });
    cached_ -= oldest->first;
    std::free(oldest->second.memory);
    cache_.erase(oldest);
  }

  CpuStream stream_;
  mutable std::mutex mutex_;
  std::unordered_map<void*, std::size_t> live_;  ///< block -> capacity
  HostArena arena_;                              ///< of the large blocks
  std::multimap<std::size_t, Cached> cache_;     ///< capacity -> freed small block
  std::size_t occupied_ = 0;                     ///< capacity of the live blocks
  std::size_t largest_occupied_ = 0;
  std::size_t small_ = 0;   ///< capacity of the live small blocks
  std::size_t cached_ = 0;  ///< capacity of the freed small blocks
  std::uint64_t releases_ = 0;
  std::int64_t bytes_in_use_ = 0;
  std::int64_t peak_bytes_ = 0;
};

}  // namespace

Device& cpu_device() {
  // Never destroyed: buffers of other static objects may outlive it.
  static CpuDevice& device = *new CpuDevice;
  return device;
}

}  // namespace longspan
