#include "model/kernels/cpu/attention_mask.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "parallel/error.hpp"

namespace longspan::model {
namespace {

constexpr std::int32_t kLargest = std::numeric_limits<std::int32_t>::max();

struct Interval {
  std::int32_t low = kLargest, high = -1;  // empty
};

/// The key positions a query at `position` sees.
Interval visible_interval(std::int64_t position, const AttentionMask& mask) {
  if (position < 0) return {};
  std::int64_t low = 0, high = kLargest;
  if (mask.window > 0) {
    low = std::max<std::int64_t>(0, position - mask.window + 1);
    if (mask.window <= kLargest)
      high = std::min<std::int64_t>(kLargest, position + mask.window - 1);
  }
  if (mask.causal) high = position;
  return {static_cast<std::int32_t>(low), static_cast<std::int32_t>(high)};
}

void check(const AttentionShape& shape) {
  if (shape.head_size < 4 || shape.head_size > 256 || shape.head_size % 4 != 0)
    fail_usage(
        "attention: head size {} is not a multiple of 4 from 4 to 256: change the model's width or "
        "heads",
        shape.head_size);
  if (shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0)
    fail_usage("attention: {} heads are not a multiple of {} key/value heads: change one of them",
               shape.heads, shape.kv_heads);
  if ((shape.query_documents == nullptr) != (shape.key_documents == nullptr))
    fail("attention: documents are given for the {} only: give both or none",
         shape.query_documents ? "queries" : "keys");
}

}  // namespace

std::int64_t visible_pairs(const AttentionShape& shape) {
  const bool documents = shape.query_documents != nullptr;
  // Sorted by (document, position), a query's keys are neighbours.
  std::vector<std::pair<std::int32_t, std::int32_t>> keys;
  for (std::int64_t j = 0; j < shape.keys; ++j)
    if (shape.key_positions[j] >= 0)
      keys.emplace_back(documents ? shape.key_documents[j] : 0, shape.key_positions[j]);
  std::sort(keys.begin(), keys.end());
  std::int64_t pairs = 0;
  for (std::int64_t i = 0; i < shape.queries; ++i) {
    const auto [low, high] = visible_interval(shape.query_positions[i], shape.mask);
    if (low > high) continue;
    const std::int32_t document = documents ? shape.query_documents[i] : 0;
    pairs += std::upper_bound(keys.begin(), keys.end(), std::pair(document, high)) -
             std::lower_bound(keys.begin(), keys.end(), std::pair(document, low));
  }
  return pairs;
}

namespace cpu {

MaskIndex::MaskIndex(const AttentionShape& shape)
    : queries_(shape.queries),
      query_blocks_((shape.queries + kQueryBlock - 1) / kQueryBlock),
      key_panels_((shape.keys + kKeyPanel - 1) / kKeyPanel) {
  check(shape);
  index_queries(shape);
  index_keys(shape);
}

void MaskIndex::index_queries(const AttentionShape& shape) {
  low_.resize(queries_);
  high_.resize(queries_);
  block_positions_.assign(query_blocks_, {kLargest, 0, kLargest, -1});
  for (std::int64_t i = 0; i < queries_; ++i) {
    const auto [low, high] = visible_interval(shape.query_positions[i], shape.mask);
    low_[i] = low;
    high_[i] = high;
    QueryRange& block = block_positions_[i / kQueryBlock];
    block.low_min = std::min(block.low_min, low);
    block.low_max = std::max(block.low_max, low);
    block.high_min = std::min(block.high_min, high);
    block.high_max = std::max(block.high_max, high);
  }
  if (!shape.query_documents) return;
  query_documents_.assign(shape.query_documents, shape.query_documents + shape.batch * queries_);
  block_documents_.assign(shape.batch * query_blocks_,
                          {kLargest, std::numeric_limits<std::int32_t>::min()});
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t i = 0; i < queries_; ++i) {
      Range& block = block_documents_[b * query_blocks_ + i / kQueryBlock];
      block.min = std::min(block.min, query_documents_[b * queries_ + i]);
      block.max = std::max(block.max, query_documents_[b * queries_ + i]);
    }
  }
}

void MaskIndex::index_keys(const AttentionShape& shape) {
  const std::int64_t padded = key_panels_ * kKeyPanel;
  key_positions_.assign(padded, -1);
  panel_positions_.assign(key_panels_, {kLargest, -1});
  panel_has_padding_.assign(key_panels_, 0);
  for (std::int64_t j = 0; j < padded; ++j) {
    if (j < shape.keys) key_positions_[j] = std::max(shape.key_positions[j], -1);
    Range& panel = panel_positions_[j / kKeyPanel];
    if (key_positions_[j] < 0) {
      panel_has_padding_[j / kKeyPanel] = 1;
    } else {
      panel.min = std::min(panel.min, key_positions_[j]);
      panel.max = std::max(panel.max, key_positions_[j]);
    }
  }
  if (!shape.key_documents) return;
  key_documents_.assign(shape.batch * padded, 0);
  panel_documents_.assign(shape.batch * key_panels_,
                          {kLargest, std::numeric_limits<std::int32_t>::min()});
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t j = 0; j < shape.keys; ++j) {
      const std::int32_t document = shape.key_documents[b * shape.keys + j];
      key_documents_[b * padded + j] = document;
      Range& panel = panel_documents_[b * key_panels_ + j / kKeyPanel];
      panel.min = std::min(panel.min, document);
      panel.max = std::max(panel.max, document);
    }
  }
}

Visible MaskIndex::tile(std::int64_t batch, std::int64_t query_block,
                        std::int64_t key_panel) const {
  const QueryRange& block = block_positions_[query_block];
  const Range& panel = panel_positions_[key_panel];
  if (panel.max < block.low_min || panel.min > block.high_max) return Visible::kNone;
  bool all =
      panel.min >= block.low_max && panel.max <= block.high_min && !panel_has_padding_[key_panel];
  if (!query_documents_.empty()) {
    const Range& asking = block_documents_[batch * query_blocks_ + query_block];
    const Range& asked = panel_documents_[batch * key_panels_ + key_panel];
    if (asked.max < asking.min || asked.min > asking.max) return Visible::kNone;
    all = all && asked.min == asked.max && asking.min == asking.max && asked.min == asking.min;
  }
  return all ? Visible::kAll : Visible::kSome;
}

PanelRun MaskIndex::visible_run(std::int64_t batch, std::int64_t query_block,
                                std::int64_t key_group) const {
  const std::int64_t begin = key_group * kGroupPanels;
  const std::int64_t panels = std::min(kGroupPanels, key_panels_ - begin);
  PanelRun run;
  for (std::int64_t p = 0; p < panels; ++p) {
    if (tile(batch, query_block, begin + p) == Visible::kNone) continue;
    if (run.first == run.last) run.first = p;
    run.last = p + 1;
  }
  return run;
}

std::int64_t MaskIndex::visible_tiles(std::int64_t batch, std::int64_t first_block,
                                      std::int64_t last_block, std::int64_t first_group,
                                      std::int64_t last_group) const {
  std::int64_t tiles = 0;
  const std::int64_t last_panel = std::min(last_group * kGroupPanels, key_panels_);
  for (std::int64_t block = first_block; block < last_block; ++block)
    for (std::int64_t panel = first_group * kGroupPanels; panel < last_panel; ++panel)
      tiles += tile(batch, block, panel) != Visible::kNone;
  return tiles;
}

const std::int32_t* MaskIndex::query_documents(std::int64_t batch) const {
  return query_documents_.empty() ? nullptr : query_documents_.data() + batch * queries_;
}

const std::int32_t* MaskIndex::key_documents(std::int64_t batch) const {
  return key_documents_.empty() ? nullptr : key_documents_.data() + batch * key_panels_ * kKeyPanel;
}

}  // namespace cpu
}  // namespace longspan::model
