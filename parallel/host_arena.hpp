/// The host's large blocks, cut from one range of addresses in huge pages. Free neighbours become
/// one, and a block may take any part of what others left, so the process stays about as large as
/// its largest need however the sizes of its blocks follow each other. Not thread safe:
/// cpu_device.cpp locks.
#pragma once

#include <cstddef>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace longspan {

class HostArena {
 public:
  static constexpr std::size_t kPage = 4096;  ///< blocks begin and end at its multiples
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;

  /// The smallest gap that is large enough, at its lower end; memory never used only if there is no
  /// gap. bytes: a multiple of kPage. Null if the system has no more.
  void* allocate(std::size_t bytes);
  /// The same bytes.
  void release(void* memory, std::size_t bytes) noexcept;
  /// Huge pages that a block has touched since they were given back: the most the process holds.
  std::size_t held_bytes() const { return held_ * kHugePage; }
  /// Gives huge pages without a block back, the highest first, until at most `bytes` are held or
  /// none is left.
  void shrink(std::size_t bytes) noexcept;

 private:
  /// Addresses in whole huge pages. Those below `top` have been in a block; only they, and what
  /// follows in the same page, may be read and written.
  struct Range {
    char *begin, *top, *end;
    std::vector<bool> held;  ///< per huge page
  };

  void* extend(std::size_t bytes);
  bool reserve(std::size_t bytes);
  void add_gap(char* begin, std::size_t bytes);
  void remove_gap(std::map<char*, std::size_t>::iterator gap);
  Range& range_of(const char* memory);
  void hold(const char* begin, std::size_t bytes);

  std::vector<Range> ranges_;
  std::map<char*, std::size_t> gaps_;  ///< by address: its bytes; no two touch within a range
  std::set<std::pair<std::size_t, char*>> by_size_;  ///< the same gaps
  std::size_t held_ = 0;
};

}  // namespace longspan
