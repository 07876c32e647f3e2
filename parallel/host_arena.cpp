#include "parallel/host_arena.hpp"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>

namespace longspan {
namespace {

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

/// Addresses cost nothing, and in one range everything can be a neighbour of everything: twice the
/// machine's memory. Where addresses are limited (ulimit -v), little more than what is needed now.
std::size_t reservation() {
  rlimit addresses{};
  if (getrlimit(RLIMIT_AS, &addresses) == 0 && addresses.rlim_cur != RLIM_INFINITY)
    return std::size_t{64} << 20;
  return 2 * static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

void* HostArena::allocate(std::size_t bytes) {
  const auto fit = by_size_.lower_bound({bytes, nullptr});
  if (fit == by_size_.end()) return extend(bytes);
  const auto gap = gaps_.find(fit->second);
  char* const memory = gap->first;
  const std::size_t rest = gap->second - bytes;
  remove_gap(gap);
  if (rest > 0) add_gap(memory + bytes, rest);
  hold(memory, bytes);
  return memory;
}

void* HostArena::extend(std::size_t bytes) {
  if (ranges_.empty() || static_cast<std::size_t>(ranges_.back().end - ranges_.back().top) < bytes)
    if (!reserve(bytes)) return nullptr;
  Range& range = ranges_.back();
  // A gap that ends where nothing was used yet is the block's beginning.
  char* begin = range.top;
  auto last = gaps_.lower_bound(range.top);
  if (last != gaps_.begin()) --last;
  const bool joins =
      last != gaps_.end() && last->first >= range.begin && last->first + last->second == range.top;
  if (joins) begin = last->first;
  // In whole huge pages: the kernel makes none across the end of what may be written.
  const auto offset = [&](const char* at) { return static_cast<std::size_t>(at - range.begin); };
  const std::size_t writable = round_up(offset(range.top), kHugePage),
                    needed = round_up(offset(begin + bytes), kHugePage);
  if (needed > writable &&
      mprotect(range.begin + writable, needed - writable, PROT_READ | PROT_WRITE) != 0)
    return nullptr;
  if (joins) remove_gap(last);
  range.top = begin + bytes;
  hold(begin, bytes);
  return begin;
}

bool HostArena::reserve(std::size_t bytes) {
  const std::size_t least = round_up(bytes, kHugePage);
  std::size_t wanted = std::max(least, round_up(reservation(), kHugePage));
  void* raw = MAP_FAILED;
  // mmap aligns to small pages only: map more.
  for (;; wanted = std::max(least, round_up(wanted / 2, kHugePage))) {
    raw = mmap(nullptr, wanted + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
               -1, 0);
    if (raw != MAP_FAILED || wanted == least) break;
  }
  if (raw == MAP_FAILED) return false;
  const auto address = reinterpret_cast<std::size_t>(raw);
  char* const begin = static_cast<char*>(raw) + (round_up(address, kHugePage) - address);
  madvise(begin, wanted, MADV_HUGEPAGE);  // advice: small pages work too
  ranges_.push_back({begin, begin, begin + wanted, {}});
  return true;
}

void HostArena::release(void* memory, std::size_t bytes) noexcept {
  char* begin = static_cast<char*>(memory);
  const Range& range = range_of(begin);
  auto next = gaps_.lower_bound(begin);
  if (next != gaps_.end() && next->first == begin + bytes && next->first < range.end) {
    const auto joined = next++;
    bytes += joined->second;
    remove_gap(joined);
  }
  if (next != gaps_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first >= range.begin && previous->first + previous->second == begin) {
      begin = previous->first;
      bytes += previous->second;
      remove_gap(previous);
    }
  }
  add_gap(begin, bytes);
}

void HostArena::shrink(std::size_t bytes) noexcept {
  for (auto gap = gaps_.rbegin(); gap != gaps_.rend() && held_bytes() > bytes; ++gap) {
    Range& range = range_of(gap->first);
    auto page = round_up(static_cast<std::size_t>(gap->first - range.begin), kHugePage) / kHugePage;
    const auto gap_end = static_cast<std::size_t>(gap->first + gap->second - range.begin);
    // Nobody shares the page above the last block.
    auto end =
        (range.begin + gap_end == range.top ? round_up(gap_end, kHugePage) : gap_end) / kHugePage;
    while (end > page && held_bytes() > bytes) {
      --end;
      if (!range.held[end]) continue;
      madvise(range.begin + end * kHugePage, kHugePage, MADV_DONTNEED);
      range.held[end] = false;
      --held_;
    }
  }
}

void HostArena::add_gap(char* begin, std::size_t bytes) {
  gaps_.emplace(begin, bytes);
  by_size_.emplace(bytes, begin);
}

void HostArena::remove_gap(std::map<char*, std::size_t>::iterator gap) {
  by_size_.erase({gap->second, gap->first});
  gaps_.erase(gap);
}

HostArena::Range& HostArena::range_of(const char* memory) {
  return *std::find_if(ranges_.begin(), ranges_.end(), [&](const Range& range) {
    return memory >= range.begin && memory < range.end;
  });
}

void HostArena::hold(const char* begin, std::size_t bytes) {
  Range& range = range_of(begin);
  const auto from = static_cast<std::size_t>(begin - range.begin) / kHugePage;
  const auto end = (static_cast<std::size_t>(begin - range.begin) + bytes - 1) / kHugePage + 1;
  if (range.held.size() < end) range.held.resize(end, false);
  for (std::size_t page = from; page < end; ++page)
    if (!range.held[page]) range.held[page] = true, ++held_;
}

}  // namespace longspan
