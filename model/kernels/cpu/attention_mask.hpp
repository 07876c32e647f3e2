/// Which (query block, key panel) tiles a mask leaves visible, computed once per call from the
/// positions and documents. Tiles that are all hidden are skipped, tiles that are all visible need
/// no mask arithmetic.
#pragma once

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

enum class Visible { kNone, kSome, kAll };

/// Panels [first, last) of a group, counted from the group's first; empty if first == last.
struct PanelRun {
  std::int64_t first = 0, last = 0;
};

class MaskIndex {
 public:
  /// Throws Error if the shape is outside the contract of AttentionShape. Copies what it needs.
  explicit MaskIndex(const AttentionShape& shape);

  std::int64_t query_blocks() const { return query_blocks_; }
  std::int64_t key_panels() const { return key_panels_; }
  std::int64_t key_groups() const { return (key_panels_ + kGroupPanels - 1) / kGroupPanels; }

  /// Conservative: kSome may also stand for a tile that is all hidden or all visible.
  Visible tile(std::int64_t batch, std::int64_t query_block, std::int64_t key_panel) const;

  /// The smallest run of panels of `key_group` outside which nothing is visible to the block.
  PanelRun visible_run(std::int64_t batch, std::int64_t query_block, std::int64_t key_group) const;

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
  struct QueryRange {
    std::int32_t low_min, low_max, high_min, high_max;
  };
  struct Range {
    std::int32_t min, max;
  };
  void index_queries(const AttentionShape& shape);
  void index_keys(const AttentionShape& shape);

  std::int64_t queries_ = 0, query_blocks_ = 0, key_panels_ = 0;
  std::vector<std::int32_t> low_, high_, key_positions_, query_documents_, key_documents_;
  std::vector<QueryRange> block_positions_;
  std::vector<Range> panel_positions_;  // of the keys that are not padding
  std::vector<char> panel_has_padding_;
  std::vector<Range> block_documents_, panel_documents_;  // [batch, blocks], [batch, panels]
};

}  // namespace longspan::model::cpu
