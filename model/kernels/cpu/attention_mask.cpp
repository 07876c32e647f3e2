#include "model/kernels/cpu/attention_mask.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "parallel/error.hpp"

namespace longspan::model {
namespace {

constexpr std::int32_t kLargest = std::numeric_limits<std::int32_t>::max();
constexpr std::int32_t kSmallest = std::numeric_limits<std::int32_t>::min();

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

}  // namespace

void check_shape(const AttentionShape& shape) {
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
    : documents_(shape.query_documents != nullptr),
      queries_(shape.queries),
      query_blocks_((shape.queries + kQueryBlock - 1) / kQueryBlock),
      key_panels_((shape.keys + kKeyPanel - 1) / kKeyPanel),
      low_(shape.queries),
      high_(shape.queries),
      key_positions_(key_panels_ * kKeyPanel, -1) {
  check_shape(shape);
  for (std::int64_t i = 0; i < queries_; ++i) {
    const auto [low, high] = visible_interval(shape.query_positions[i], shape.mask);
    low_[i] = low;
    high_[i] = high;
  }
  for (std::int64_t j = 0; j < shape.keys; ++j)
    key_positions_[j] = std::max(shape.key_positions[j], -1);
  const std::int64_t masks = documents_ ? shape.batch : 1, padded_keys = key_panels_ * kKeyPanel;
  if (documents_) {
    query_documents_.assign(shape.query_documents, shape.query_documents + masks * queries_);
    key_documents_.assign(masks * padded_keys, 0);
    for (std::int64_t b = 0; b < masks; ++b)
      std::copy_n(shape.key_documents + b * shape.keys, shape.keys,
                  key_documents_.begin() + b * padded_keys);
  }
  for (std::int64_t b = 0; b < masks; ++b) {
    for (std::int64_t i = 0; i < query_blocks_; ++i)
      blocks_.push_back(summarise_queries(b, i * kQueryBlock, kQueryBlock));
    for (std::int64_t i = 0; i < query_blocks_ * TileRanges::kRowStrips; ++i)
      strips_.push_back(summarise_queries(b, i * kStrip, kStrip));
    for (std::int64_t j = 0; j < key_panels_; ++j)
      panels_.push_back(summarise_keys(b, j * kKeyPanel, kKeyPanel));
    for (std::int64_t j = 0; j < padded_keys / kKeyChunk; ++j)
      chunks_.push_back(summarise_keys(b, j * kKeyChunk, kKeyChunk));
  }
}

MaskIndex::Queries MaskIndex::summarise_queries(std::int64_t batch, std::int64_t first,
                                                std::int64_t count) const {
  Queries all{kLargest, 0, kLargest, -1, kLargest, kSmallest};
  for (std::int64_t i = first; i < std::min(first + count, queries_); ++i) {
    all.low_min = std::min(all.low_min, low_[i]);
    all.low_max = std::max(all.low_max, low_[i]);
    all.high_min = std::min(all.high_min, high_[i]);
    all.high_max = std::max(all.high_max, high_[i]);
    if (low_[i] > high_[i]) continue;
    const std::int32_t document = documents_ ? query_documents_[batch * queries_ + i] : 0;
    all.document_min = std::min(all.document_min, document);
    all.document_max = std::max(all.document_max, document);
  }
  return all;
}

MaskIndex::Keys MaskIndex::summarise_keys(std::int64_t batch, std::int64_t first,
                                          std::int64_t count) const {
  Keys all{kLargest, -1, kLargest, kSmallest, false};
  for (std::int64_t j = first; j < first + count; ++j) {
    if (key_positions_[j] < 0) {
      all.padding = true;
      continue;
    }
    all.position_min = std::min(all.position_min, key_positions_[j]);
    all.position_max = std::max(all.position_max, key_positions_[j]);
    const std::int32_t document =
        documents_ ? key_documents_[batch * key_panels_ * kKeyPanel + j] : 0;
    all.document_min = std::min(all.document_min, document);
    all.document_max = std::max(all.document_max, document);
  }
  return all;
}

Visible MaskIndex::see(const Queries& queries, const Keys& keys) {
  if (keys.position_max < queries.low_min || keys.position_min > queries.high_max ||
      keys.document_max < queries.document_min || keys.document_min > queries.document_max)
    return Visible::kNone;
  const bool one_document = keys.document_min == keys.document_max &&
                            queries.document_min == queries.document_max &&
                            keys.document_min == queries.document_min;
  return one_document && !keys.padding && keys.position_min >= queries.low_max &&
                 keys.position_max <= queries.high_min
             ? Visible::kAll
             : Visible::kSome;
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

void MaskIndex::find_ranges(std::int64_t batch, std::int64_t query_block, std::int64_t key_group,
                            PanelRun run, TileRanges& ranges) const {
  constexpr std::int64_t kPanelChunks = kKeyPanel / kKeyChunk;
  const std::int64_t block_rows = rows(query_block), strips = (block_rows + kStrip - 1) / kStrip;
  const std::int64_t chunks = (run.last - run.first) * kPanelChunks;
  const Queries* const asking = strips_.data() +
                                offset(batch, query_blocks_ * TileRanges::kRowStrips) +
                                query_block * TileRanges::kRowStrips;
  const Keys* const asked = chunks_.data() + offset(batch, key_panels_ * kPanelChunks) +
                            (key_group * kGroupPanels + run.first) * kPanelChunks;
  const std::int64_t key_strips = (chunks * kKeyChunk + kStrip - 1) / kStrip;
  bool all = true;
  for (std::int64_t p = run.first; p < run.last && all; ++p)
    all = tile(batch, query_block, key_group * kGroupPanels + p) == Visible::kAll;
  if (all) {
    std::fill_n(ranges.key_begin, strips, std::int16_t{0});
    std::fill_n(ranges.key_end, strips, static_cast<std::int16_t>(chunks * kKeyChunk));
    std::fill_n(ranges.row_begin, key_strips, std::int16_t{0});
    std::fill_n(ranges.row_end, key_strips, static_cast<std::int16_t>(block_rows));
    return;
  }
  std::fill_n(ranges.row_begin, key_strips, std::int16_t{0});
  std::fill_n(ranges.row_end, key_strips, std::int16_t{0});
  for (std::int64_t s = 0; s < strips; ++s) {
    std::int64_t begin = 0, end = chunks;
    while (begin < end && see(asking[s], asked[begin]) == Visible::kNone) ++begin;
    while (begin < end && see(asking[s], asked[end - 1]) == Visible::kNone) --end;
    if (begin == end) begin = end = 0;
    ranges.key_begin[s] = static_cast<std::int16_t>(begin * kKeyChunk);
    ranges.key_end[s] = static_cast<std::int16_t>(end * kKeyChunk);
    for (std::int64_t k = begin * kKeyChunk / kStrip; k * kStrip < end * kKeyChunk; ++k) {
      if (ranges.row_begin[k] == ranges.row_end[k])
        ranges.row_begin[k] = static_cast<std::int16_t>(s * kStrip);
      ranges.row_end[k] = static_cast<std::int16_t>(std::min((s + 1) * kStrip, block_rows));
    }
  }
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

std::int64_t MaskIndex::last_visible_group(std::int64_t batch, std::int64_t first_block,
                                           std::int64_t last_block, std::int64_t first_group,
                                           std::int64_t last_group) const {
  for (std::int64_t group = last_group - 1; group >= first_group; --group)
    if (visible_tiles(batch, first_block, last_block, group, group + 1) > 0) return group;
  return last_group;
}

const std::int32_t* MaskIndex::query_documents(std::int64_t batch) const {
  return documents_ ? query_documents_.data() + batch * queries_ : nullptr;
}

const std::int32_t* MaskIndex::key_documents(std::int64_t batch) const {
  return documents_ ? key_documents_.data() + batch * key_panels_ * kKeyPanel : nullptr;
}

}  // namespace cpu
}  // namespace longspan::model
