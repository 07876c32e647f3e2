/// Which (query block, key panel) tiles a mask leaves visible, computed once per call from the
/// positions and documents. Tiles that are all hidden are skipped, tiles that are all visible need
/// no mask arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "model/kernels/attention.hpp"

namespace longspan::model::cpu {

/// Queries are handled in blocks, keys in panels, whose packed forms are loaded in groups. Sizes in
/// tokens; chosen so that a block of scores and the operands of the product at hand stay in the
/// first two caches (measured with bench_attention) and so that the rows of a block and of a group
/// are multiples of the register tile's 6.
inline constexpr std::int64_t kQueryBlock = 96;
inline constexpr std::int64_t kKeyPanel = 64;
inline constexpr std::int64_t kGroupPanels = 3;
inline constexpr std::int64_t kKeyGroup = kKeyPanel * kGroupPanels;

/// Rows of the register tile, and the keys that the edge of a mask is resolved to.
inline constexpr std::int64_t kStrip = 6;
inline constexpr std::int64_t kKeyChunk = 16;

/// Rows of a block whose scores become probabilities at once, so that they do it in the first
/// cache.
inline constexpr std::int64_t kScoreRows = 24;
static_assert(kQueryBlock % kScoreRows == 0 && kScoreRows % kStrip == 0);
static_assert(kQueryBlock % kStrip == 0 && kKeyGroup % kStrip == 0);

enum class Visible { kNone, kSome, kAll };

/// Panels [first, last) of a group, counted from the group's first; empty if first == last.
struct PanelRun {
  std::int64_t first = 0, last = 0;
};

/// What of a query block against a run of panels is worth computing, strip by strip. Outside
/// nothing is visible.
struct TileRanges {
  static constexpr std::int64_t kRowStrips = kQueryBlock / kStrip, kKeyStrips = kKeyGroup / kStrip;
  /// For rows [6 s, 6 s + 6): keys of the run, multiples of kKeyChunk. begin == end: none.
  std::int16_t key_begin[kRowStrips], key_end[kRowStrips];
  /// For keys [6 s, 6 s + 6) of the run: rows of the block, from a multiple of 6 to one or to the
  /// block's end.
  std::int16_t row_begin[kKeyStrips], row_end[kKeyStrips];
};

class MaskIndex {
 public:
  /// Throws Error if the shape is outside the contract of AttentionShape. Copies what it needs.
  explicit MaskIndex(const AttentionShape& shape);

  std::int64_t query_blocks() const { return query_blocks_; }
  std::int64_t key_panels() const { return key_panels_; }
  std::int64_t key_groups() const { return (key_panels_ + kGroupPanels - 1) / kGroupPanels; }
  std::int64_t rows(std::int64_t query_block) const {
    return std::min(kQueryBlock, queries_ - query_block * kQueryBlock);
  }

  /// Conservative: kSome may also stand for a tile that is all hidden or all visible.
  Visible tile(std::int64_t batch, std::int64_t query_block, std::int64_t key_panel) const {
    return see(blocks_[offset(batch, query_blocks_) + query_block],
               panels_[offset(batch, key_panels_) + key_panel]);
  }

  /// The smallest run of panels of `key_group` outside which nothing is visible to the block.
  PanelRun visible_run(std::int64_t batch, std::int64_t query_block, std::int64_t key_group) const;

  /// The last of groups [first_group, last_group) that some of blocks [first_block, last_block)
  /// sees; last_group if there is none.
  std::int64_t last_visible_group(std::int64_t batch, std::int64_t first_block,
                                  std::int64_t last_block, std::int64_t first_group,
                                  std::int64_t last_group) const;

  void find_ranges(std::int64_t batch, std::int64_t query_block, std::int64_t key_group,
                   PanelRun run, TileRanges& ranges) const;

  /// Visible tiles of blocks [first_block, last_block) x groups [first_group, last_group): a
  /// measure of the work.
  std::int64_t visible_tiles(std::int64_t batch, std::int64_t first_block, std::int64_t last_block,
                             std::int64_t first_group, std::int64_t last_group) const;

  /// Query i sees key j iff low[i] <= key_positions[j] <= high[i] and the documents agree. Keys
  /// that are padding have position -1, and so have those past the last, up to a whole panel.
  const std::int32_t* low() const { return low_.data(); }
  const std::int32_t* high() const { return high_.data(); }
  const std::int32_t* key_positions() const { return key_positions_.data(); }
  /// Null without documents.
  const std::int32_t* query_documents(std::int64_t batch) const;
  const std::int32_t* key_documents(std::int64_t batch) const;

 private:
  /// What some queries want to see and some keys have to show. Padding has no say in minima and
  /// maxima, except that it raises low_max and lowers high_min, so that its tiles are never kAll.
  struct Queries {
    std::int32_t low_min, low_max, high_min, high_max, document_min, document_max;
  };
  struct Keys {
    std::int32_t position_min, position_max, document_min, document_max;
    bool padding;
  };
  static Visible see(const Queries& queries, const Keys& keys);
  Queries summarise_queries(std::int64_t batch, std::int64_t first, std::int64_t count) const;
  Keys summarise_keys(std::int64_t batch, std::int64_t first, std::int64_t count) const;
  /// Without documents all sequences of the batch share one mask.
  std::int64_t offset(std::int64_t batch, std::int64_t each) const {
    return documents_ ? batch * each : 0;
  }

  bool documents_ = false;
  std::int64_t queries_ = 0, query_blocks_ = 0, key_panels_ = 0;
  std::vector<std::int32_t> low_, high_, key_positions_, query_documents_, key_documents_;
  std::vector<Queries> blocks_, strips_;  // of kQueryBlock, of kStrip queries, for each mask
  std::vector<Keys> panels_, chunks_;     // of kKeyPanel, of kKeyChunk keys, for each mask
};

}  // namespace longspan::model::cpu
