#include "model/attention_traffic.hpp"

#include <algorithm>

#include "model/attention_heads.hpp"

namespace longspan::model {
namespace {

constexpr std::int64_t kBytes = sizeof(float);

/// `tokens` on each of `ranks` ranks, rows of keys and values `width` wide together.
AttentionTraffic ring_traffic(const AttentionMask& mask, std::int64_t width, std::int64_t sequences,
                              std::int64_t length, std::int64_t tokens, int ranks, int rank) {
  const std::int64_t row = kBytes * sequences * width;
  if (mask.window == 0) {
    const std::int64_t hops = ranks - 1;
    return {hops * tokens * row, (hops + ranks) * tokens * row, 0};
  }
  std::int64_t outgoing = 0, incoming = 0;
  for (int other = 0; other < ranks; ++other) {
    if (other == rank) continue;
    outgoing += rows_in_window(mask, length, tokens, rank, other);
    incoming += rows_in_window(mask, length, tokens, other, rank);
  }
  return {outgoing * row, (outgoing + incoming) * row, 0};
}

AttentionTraffic head_traffic(const AttentionGeometry& geometry, std::int64_t rows, int ranks,
                              int rank) {
  std::int64_t inputs = 0, queries = 0;  // heads of the others
  for (int other = 0; other < ranks; ++other) {
    if (other == rank) continue;
    const HeadShare share = head_share(geometry, other, ranks);
    inputs += share.count + 2 * share.kv_count;
    queries += share.count;
  }
  const HeadShare mine = head_share(geometry, rank, ranks);
  const std::int64_t head = kBytes * rows * geometry.head_size, others = ranks - 1;
  return {head * (inputs + others * mine.count),
          head * (queries + others * (mine.count + 2 * mine.kv_count)) + kBytes * rows * queries,
          head * inputs};
}

}  // namespace

std::int64_t SequenceSharing::tokens(const AttentionMask& mask) const {
  const std::int64_t chunks =
      layout_for(mask.causal, mask.window) == SequenceLayout::kZigzag && ranks > 1 ? 2 : 1;
  return chunks * ((length + chunks * ranks - 1) / (chunks * ranks));
}

std::int64_t rows_in_window(const AttentionMask& mask, std::int64_t length, std::int64_t tokens,
                            int from, int to) {
  const std::int64_t keys = from * tokens, keys_end = std::min(length, keys + tokens);
  const std::int64_t queries = to * tokens, queries_end = std::min(length, queries + tokens);
  if (keys >= keys_end || queries >= queries_end) return 0;
  const std::int64_t reach = mask.window - 1;
  return std::max<std::int64_t>(0, std::min(keys_end, queries_end + (mask.causal ? 0 : reach)) -
                                       std::max(keys, queries - reach));
}

AttentionTraffic attention_traffic(AttentionSchemeKind scheme, const AttentionGeometry& geometry,
                                   const SequenceSharing& sharing, int rank) {
  const std::int64_t tokens = sharing.tokens(geometry.mask), rows = sharing.sequences * tokens;
  const std::int64_t width = 2 * geometry.kv_width();
  const int ranks = sharing.ranks;
  if (ranks == 1) return {};
  switch (scheme) {
    case AttentionSchemeKind::kAllgather: {
      const std::int64_t others = (ranks - 1) * kBytes * rows * width;
      return {others, 2 * others, 0};
    }
    case AttentionSchemeKind::kUlysses:
      return head_traffic(geometry, rows, ranks, rank);
    case AttentionSchemeKind::kHybrid: {
      const int inner = sharing.inner;
      AttentionTraffic sum = head_traffic(geometry, rows, inner, rank % inner);
      const HeadShare share = head_share(geometry, rank % inner, inner);
      const AttentionTraffic ring =
          ring_traffic(geometry.mask, 2 * share.kv_count * geometry.head_size, sharing.sequences,
                       sharing.length, inner * tokens, ranks / inner, rank / inner);
      sum.forward += ring.forward, sum.backward += ring.backward;
      return sum;
    }
    case AttentionSchemeKind::kAuto:
    case AttentionSchemeKind::kRing:
      break;
  }
  return ring_traffic(geometry.mask, width, sharing.sequences, sharing.length, tokens, ranks, rank);
}

}  // namespace longspan::model
