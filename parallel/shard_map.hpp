/// Which elements of a flat vector each rank owns when optimizer states, gradients or weights are
/// sharded (ZeRO, Rajbhandari et al. 2020). The vector is a row of units (an embedding, a block);
/// every rank owns one consecutive, balanced part of every unit, so that a unit is reduced and
/// gathered by itself, and a tensor falls into few pieces. Any number of elements and ranks: parts
/// may be empty. Pure; nothing here communicates. Read next: process_group.hpp, whose in-place
/// collectives split a vector in the same way.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "parallel/array.hpp"

namespace longspan {

/// Elements [begin, begin + count) of a flat vector.
struct FlatRange {
  std::int64_t begin = 0, count = 0;
  std::int64_t end() const { return begin + count; }
  bool operator==(const FlatRange&) const = default;
};

class ShardMap {
 public:
  /// `units`: consecutive ranges from element 0 on, possibly empty ones.
  ShardMap(std::vector<FlatRange> units, int ranks) : units_(std::move(units)), ranks_(ranks) {}

  int units() const { return static_cast<int>(units_.size()); }
  int ranks() const { return ranks_; }
  FlatRange unit(int u) const { return units_[static_cast<std::size_t>(u)]; }
  /// The part of unit `u` that `rank` owns.
  FlatRange owned(int u, int rank) const {
    const FlatRange whole = unit(u);
    const std::int64_t first = part_begin(whole.count, rank, ranks_);
    return {whole.begin + first, part_begin(whole.count, rank + 1, ranks_) - first};
  }
  /// Where that part begins in the rank's shard, its owned parts one behind the other; for
  /// u = units() the length of the shard.
  std::int64_t shard_offset(int u, int rank) const {
    std::int64_t offset = 0;
    for (int before = 0; before < u; ++before) offset += owned(before, rank).count;
    return offset;
  }

 private:
  std::vector<FlatRange> units_;
  int ranks_;
};

}  // namespace longspan
