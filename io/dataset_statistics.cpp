#include "io/dataset_statistics.hpp"

#include <algorithm>
#include <cmath>
#include <unordered_map>

namespace longspan::io {
namespace {

constexpr std::int64_t kPiece = 1 << 20;            // tokens
constexpr std::int64_t kDenseVocabulary = 1 << 24;  // beyond it counts go to a hash map

/// 0, 1, 2, 5, 10, 20, 50, ...
std::vector<std::int64_t> bin_edges(std::int64_t longest) {
  std::vector<std::int64_t> edges = {0, 1};
  for (std::int64_t decade = 1; edges.back() <= longest; decade *= 10)
    for (std::int64_t step : {2, 5, 10}) edges.push_back(step * decade);
  return edges;
}

}  // namespace

DocumentLengths document_lengths(const DatasetFacts& facts) {
  std::vector<std::int64_t> lengths;
  for (std::size_t i = 0; i + 1 < facts.document_offsets.size(); ++i)
    lengths.push_back(
        static_cast<std::int64_t>(facts.document_offsets[i + 1] - facts.document_offsets[i]));
  std::sort(lengths.begin(), lengths.end());
  DocumentLengths result;
  result.shortest = lengths.front();
  result.median = lengths[(lengths.size() - 1) / 2];
  result.longest = lengths.back();
  result.mean = static_cast<double>(facts.tokens) / static_cast<double>(lengths.size());
  const std::vector<std::int64_t> edges = bin_edges(result.longest);
  auto at = lengths.begin();
  for (std::size_t i = 0; i + 1 < edges.size(); ++i) {
    const auto end = std::lower_bound(at, lengths.end(), edges[i + 1]);
    const LengthBin bin{edges[i], edges[i + 1], end - at};
    at = end;
    if (bin.documents > 0 || (!result.bins.empty() && at != lengths.end()))
      result.bins.push_back(bin);
  }
  return result;
}

TokenFrequencies token_frequencies(
    const TokenDataset& dataset, std::size_t top, std::int64_t limit,
    const std::function<void(std::int64_t, std::int64_t)>& progress) {
  const DatasetFacts& facts = dataset.facts();
  TokenFrequencies result;
  const std::int64_t pieces = (facts.tokens + kPiece - 1) / kPiece;
  const std::int64_t wanted = std::clamp<std::int64_t>(limit / kPiece, 1, pieces);
  result.sampled = wanted < pieces;
  const bool dense = facts.vocabulary <= kDenseVocabulary;
  std::vector<std::int64_t> counts(dense ? static_cast<std::size_t>(facts.vocabulary) : 0);
  std::unordered_map<std::int32_t, std::int64_t> sparse;
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < wanted; ++i) {
    const std::int64_t first = part_begin(pieces, i, wanted) * kPiece;
    ids.resize(static_cast<std::size_t>(std::min(kPiece, facts.tokens - first)));
    dataset.read(first, static_cast<std::int64_t>(ids.size()), ids.data());
    if (dense)
      for (std::int32_t id : ids) ++counts[static_cast<std::size_t>(id)];
    else
      for (std::int32_t id : ids) ++sparse[id];
    result.scanned += static_cast<std::int64_t>(ids.size());
    if (progress) progress(i + 1, wanted);
  }
  std::vector<TokenCount> all;
  for (std::size_t id = 0; id < counts.size(); ++id)
    if (counts[id] > 0) all.push_back({static_cast<std::int32_t>(id), counts[id]});
  for (const auto& [id, count] : sparse) all.push_back({id, count});
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
    return a.count != b.count ? a.count > b.count : a.id < b.id;
  });
  result.distinct = static_cast<std::int64_t>(all.size());
  for (const TokenCount& token : all) {
    const double share = static_cast<double>(token.count) / static_cast<double>(result.scanned);
    result.entropy_bits -= share * std::log2(share);
  }
  all.resize(std::min(top, all.size()));
  result.most_frequent = std::move(all);
  return result;
}

}  // namespace longspan::io
