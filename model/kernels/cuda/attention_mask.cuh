/// Which (query tile, key tile) pairs of an attention mask are worth computing, found on the device
/// once per call from positions and documents: pairs that are all hidden are skipped, pairs that
/// are all visible need no mask arithmetic. The GPU's twin of kernels/cpu/attention_mask.hpp.
#pragma once

#include <cstdint>

#include "model/kernels/attention.hpp"
#include "parallel/cuda/launch.hpp"
#include "parallel/device.hpp"

namespace longspan::model::cuda {

/// What the queries of a tile want to see. Those that see nothing have no say in minima and maxima,
/// except that they raise low_max and lower high_min: their tile is never whole.
struct QueryTile {
  std::int32_t low_min, low_max, high_min, high_max, document_min, document_max;
};
/// What the keys of a tile have to show. Keys past the last are padding.
struct KeyTile {
  std::int32_t position_min, position_max, document_min, document_max, padding;
};

/// A mask on the device. Query i sees key j iff low[i] <= key_positions[j] <= high[i] and the
/// documents agree.
struct DeviceMask {
  const std::int32_t *low = nullptr, *high = nullptr;  ///< [queries]; low > high: sees nothing
  const std::int32_t* key_positions = nullptr;         ///< [keys]
  const std::int32_t *query_documents = nullptr,
                     *key_documents = nullptr;  ///< [batch, ...] or null
  const QueryTile* query_tiles = nullptr;  ///< [batch or, without documents, 1][query_tile_count]
  const KeyTile* key_tiles = nullptr;
  std::int32_t queries = 0, keys = 0, query_tile_count = 0, key_tile_count = 0;

  __device__ const QueryTile* query_tiles_of(int batch) const {
    return query_tiles +
           (query_documents ? static_cast<std::int64_t>(batch) * query_tile_count : 0);
  }
  __device__ const KeyTile* key_tiles_of(int batch) const {
    return key_tiles + (query_documents ? static_cast<std::int64_t>(batch) * key_tile_count : 0);
  }
};

/// One query, one key, read from a DeviceMask; past the end they see and show nothing.
struct MaskedQuery {
  std::int32_t low, high, document;
};
struct MaskedKey {
  std::int32_t position, document;
};
__device__ inline MaskedQuery masked_query(const DeviceMask& mask, int batch, int query) {
  if (query >= mask.queries) return {0x7fffffff, -1, 0};
  return {mask.low[query], mask.high[query],
          mask.query_documents
              ? mask.query_documents[static_cast<std::int64_t>(batch) * mask.queries + query]
              : 0};
}
__device__ inline MaskedKey masked_key(const DeviceMask& mask, int batch, int key) {
  if (key >= mask.keys) return {-1, 0};
  return {mask.key_positions[key],
          mask.key_documents
              ? mask.key_documents[static_cast<std::int64_t>(batch) * mask.keys + key]
              : 0};
}
__device__ inline bool sees(const MaskedQuery& query, const MaskedKey& key) {
  return key.position >= query.low && key.position <= query.high && key.document == query.document;
}

__device__ inline bool is_hidden(const QueryTile& queries, const KeyTile& keys) {
  return keys.position_max < queries.low_min || keys.position_min > queries.high_max ||
         keys.document_max < queries.document_min || keys.document_min > queries.document_max;
}
/// Every query sees every key.
__device__ inline bool is_whole(const QueryTile& queries, const KeyTile& keys) {
  return keys.document_min == keys.document_max && queries.document_min == queries.document_max &&
         keys.document_min == queries.document_min && !keys.padding &&
         keys.position_min >= queries.low_max && keys.position_max <= queries.high_min;
}
__device__ inline bool is_hidden(const KeyTile& keys, const QueryTile& queries) {
  return is_hidden(queries, keys);
}
__device__ inline bool is_whole(const KeyTile& keys, const QueryTile& queries) {
  return is_whole(queries, keys);
}

/// Walks, in ascending order, over the tiles of the other side that are not hidden from one's own.
/// Each lane looks at one tile: where most are hidden, 32 cost as much as one. Every warp of a
/// block walks for itself and finds the same.
template <class Own, class Other>
class TileWalk {
 public:
  __device__ TileWalk(const Own& own, const Other* others, int count)
      : own_(own), others_(others), count_(count) {}

  /// Moves to the next tile; false: there is none. Called by whole warps.
  __device__ bool next() {
    while (visible_ == 0) {
      base_ += 32;
      if (base_ >= count_) return false;
      const int mine = base_ + static_cast<int>(threadIdx.x % 32);
      bool visible = false, whole = false;
      if (mine < count_) {
        const Other other = others_[mine];
        visible = !is_hidden(own_, other);
        whole = visible && is_whole(own_, other);
      }
      visible_ = __ballot_sync(0xffffffffu, visible);
      whole_ = __ballot_sync(0xffffffffu, whole);
    }
    const int bit = __ffs(static_cast<int>(visible_)) - 1;
    visible_ &= visible_ - 1;
    tile_ = base_ + bit;
    tile_is_whole_ = whole_ >> bit & 1;
    return true;
  }
  __device__ int tile() const { return tile_; }
  __device__ bool tile_is_whole() const { return tile_is_whole_; }
  __device__ void restart() { base_ = -32, visible_ = 0; }

 private:
  Own own_;
  const Other* others_;
  int count_, base_ = -32, tile_ = 0;
  unsigned visible_ = 0, whole_ = 0;
  bool tile_is_whole_ = false;
};

}  // namespace longspan::model::cuda
