#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

#include "parallel/device.hpp"
#include "parallel/error.hpp"

namespace longspan {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kPage = 4096;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
/// Blocks from here on are mapped on their own, in huge pages: far fewer TLB misses in a matrix
/// product, and what is given back really leaves the process (malloc would keep it in its heap).
constexpr std::size_t kMappedBytes = std::size_t{4} << 20;
/// Freed memory that may be kept beyond the largest use so far; at least 1/16 of that use.
constexpr std::size_t kCacheSlackBytes = std::size_t{4} << 20;

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

std::size_t capacity_for(std::size_t bytes) {
  return bytes >= kMappedBytes ? round_up(bytes, kPage) : round_up(bytes, kAlignment);
}

/// null if the system has none left.
void* system_allocate(std::size_t capacity) {
  if (capacity < kMappedBytes) return std::aligned_alloc(kAlignment, capacity);
  const std::size_t mapped =
      capacity + kHugePage;  // mmap aligns to small pages only: map more, cut both ends
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(raw);
  const std::size_t address = reinterpret_cast<std::size_t>(raw);
  const std::size_t head = round_up(address, kHugePage) - address;
  if (head > 0) munmap(begin, head);
  if (mapped - head > capacity) munmap(begin + head + capacity, mapped - head - capacity);
  madvise(begin + head, capacity, MADV_HUGEPAGE);  // advice: small pages work too
  return begin + head;
}

void system_release(void* memory, std::size_t capacity) {
  if (capacity < kMappedBytes)
    std::free(memory);
  else
    munmap(memory, capacity);
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
    // Blocks are counted by what was asked for, the cache's bound by what they really occupy.
    const Block block = take_cached(capacity_for(bytes), bytes);
    live_.emplace(block.memory, block.capacity);
    occupied_ += block.capacity;
    largest_occupied_ = std::max(largest_occupied_, occupied_);
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

  Block take_cached(std::size_t capacity, std::size_t bytes) {
    const auto fit = cache_.lower_bound(capacity);
    if (fit != cache_.end() && fit->first <= capacity + capacity / 8) {
      const Block block{fit->second.memory, fit->first};
      cached_ -= block.capacity;
      cache_.erase(fit);
      return block;
    }
    // The process should stay as large as its largest need, not grow to the sum of every size ever
    // used.
    const std::size_t largest = std::max(largest_occupied_, occupied_ + capacity);
    const std::size_t bound = largest + std::max(largest / 16, kCacheSlackBytes);
    while (!cache_.empty() && occupied_ + cached_ + capacity > bound) drop_oldest();
    void* memory = system_allocate(capacity);
    while (memory == nullptr && !cache_.empty()) {
      drop_oldest();
      memory = system_allocate(capacity);
    }
    if (memory == nullptr)
      fail(
          "no memory for {} bytes on the cpu, {} bytes are in use: use shorter sequences, smaller "
          "micro-batches, "
          "memory.keep=block or more ranks",
          bytes, bytes_in_use_);
    return {memory, capacity};
  }

  void drop_oldest() {
    const auto oldest = std::min_element(
        cache_.begin(), cache_.end(),
        [](const auto& x, const auto& y) { return x.second.released < y.second.released; });
    cached_ -= oldest->first;
    system_release(oldest->second.memory, oldest->first);
    cache_.erase(oldest);
  }

  CpuStream stream_;
  mutable std::mutex mutex_;
  std::unordered_map<void*, std::size_t> live_;  ///< block -> capacity
  std::multimap<std::size_t, Cached> cache_;     ///< capacity -> freed block
  std::size_t occupied_ = 0;                     ///< capacity of the live blocks
  std::size_t largest_occupied_ = 0;
  std::size_t cached_ = 0;  ///< capacity of the freed blocks
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
