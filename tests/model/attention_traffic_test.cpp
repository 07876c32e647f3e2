/// The formulas of what every scheme sends, and what decides about it: rows, layouts, balance. That
/// the schemes send just that is in attention_schemes_test.cpp.
#include "model/attention_traffic.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "model/attention_ring.hpp"

namespace longspan::model {
namespace {

// The table of notes/long-sequences.md section 4, in its own words.
TEST(AttentionTraffic, TrafficIsThatOfSectionFourWhereRanksDivideEverything) {
  constexpr std::int64_t kWidth = 8, n = 12;
  for (const int p : {2, 3, 4, 6, 8}) {
    const std::int64_t h = 4 * p, g = 2 * p, d = h * kWidth, dkv = g * kWidth;
    const auto sent = [&](AttentionSchemeKind scheme, std::int64_t kv_heads, int inner = 1,
                          AttentionMask mask = {true, 0}, int rank = 0) {
      return attention_traffic(scheme, {h, kv_heads, kWidth, mask, 1.0f}, {1, n * p, p, inner},
                               rank);
    };
    const auto ring = sent(AttentionSchemeKind::kRing, g);
    EXPECT_EQ(ring.forward, 4 * (p - 1) * 2 * n * dkv);
    EXPECT_EQ(ring.backward, 4 * ((p - 1) * 2 * n * dkv + p * 2 * n * dkv));
    const auto allgather = sent(AttentionSchemeKind::kAllgather, g);
    EXPECT_EQ(allgather.forward, ring.forward);
    EXPECT_EQ(allgather.backward, 4 * (p - 1) * 4 * n * dkv);
    // P divides G; the backward pass also carries the rowsums.
    const auto ulysses = sent(AttentionSchemeKind::kUlysses, g);
    EXPECT_EQ(ulysses.forward, 4 * (p - 1) * n * (2 * d + 2 * dkv) / p);
    EXPECT_EQ(ulysses.backward, ulysses.forward + 4 * (p - 1) * n * h / p);
    // One key/value head on all ranks: its traffic is P times that of one that is on one.
    EXPECT_EQ(sent(AttentionSchemeKind::kUlysses, 1).forward,
              4 * (p - 1) * n * (2 * d + 2 * p * kWidth) / p);
    for (const int pu : {2, 3, 4}) {
      if (p % pu != 0 || pu == p) continue;
      const auto hybrid = sent(AttentionSchemeKind::kHybrid, g, pu);
      const std::int64_t pr = p / pu, heads = 4 * (pu - 1) * n * (2 * d + 2 * dkv) / pu;
      EXPECT_EQ(hybrid.forward, heads + 4 * (pr - 1) * 2 * n * dkv);
      EXPECT_EQ(hybrid.backward, heads + 4 * (pu - 1) * n * h / pu +
                                     4 * ((pr - 1) * 2 * n * dkv + pr * 2 * n * dkv));
    }
    for (const std::int64_t w : {1, 2, 7, 12, 13, 30, 1000})
      for (int r = 0; r < p; ++r) {
        const std::int64_t before = std::min(w - 1, r * n),
                           behind = std::min(w - 1, (p - 1 - r) * n);
        const auto causal = sent(AttentionSchemeKind::kRing, g, 1, {true, w}, r);
        EXPECT_EQ(causal.forward, 4 * 2 * behind * dkv) << w;
        EXPECT_EQ(causal.backward, 4 * 2 * (behind + before) * dkv) << w;
        const auto full = sent(AttentionSchemeKind::kRing, g, 1, {false, w}, r);
        EXPECT_EQ(full.forward, 4 * 2 * (behind + before) * dkv) << w;
        EXPECT_EQ(full.backward, 2 * full.forward) << w;
      }
  }
}

// Section 5: max/mean of the visible pairs is 1.00 with zigzag, in the whole and in every step of
// the ring; contiguous it is 2 - 1/P.
TEST(AttentionTraffic, ZigzagBalancesTheVisiblePairs) {
  const auto balance = [](std::int64_t length, int ranks, SequenceLayout layout, int step) {
    double largest = 0, sum = 0;
    for (int r = 0; r < ranks; ++r) {
      const auto queries = sequence_positions(length, r, ranks, layout);
      const auto keys = step < 0
                            ? sequence_positions(length, 0, 1, layout)
                            : sequence_positions(length, (r + ranks - step) % ranks, ranks, layout);
      AttentionShape shape;
      shape.batch = 1;
      shape.queries = static_cast<std::int64_t>(queries.size());
      shape.keys = static_cast<std::int64_t>(keys.size());
      shape.query_positions = queries.data(), shape.key_positions = keys.data();
      const auto pairs = static_cast<double>(visible_pairs(shape));
      largest = std::max(largest, pairs), sum += pairs;
    }
    return largest * ranks / sum;
  };
  for (const int ranks : {2, 3, 4, 7}) {
    const std::int64_t length = 168 * ranks;
    for (int step = -1; step < ranks; ++step)
      EXPECT_EQ(balance(length, ranks, SequenceLayout::kZigzag, step), 1.0) << ranks << " " << step;
    EXPECT_NEAR(balance(length, ranks, SequenceLayout::kContiguous, -1), 2.0 - 1.0 / ranks, 0.005);
    // Lengths that do not divide: padding costs less than one in a hundred.
    EXPECT_NEAR(balance(16384, ranks, SequenceLayout::kZigzag, -1), 1.0, 0.005);
  }
}

// Pair by pair: a row travels to a rank if and only if a query there sees it.
TEST(AttentionTraffic, OnlyRowsThatAQuerySeesTravelThroughAWindow) {
  for (const bool causal : {true, false})
    for (const std::int64_t window : {1, 2, 5, 9, 40})
      for (const std::int64_t length : {3, 29, 30})
        for (const auto layout : {SequenceLayout::kContiguous, SequenceLayout::kZigzag})
          for (int from = 0; from < 5; ++from)
            for (int to = 0; to < 5; ++to) {
              const AttentionMask mask{causal, window};
              const auto keys = sequence_positions(length, from, 5, layout);
              const auto queries = sequence_positions(length, to, 5, layout);
              std::vector<RowRange> expected;
              for (std::size_t k = 0; k < keys.size(); ++k) {
                bool seen = false;
                for (const std::int64_t q : queries)
                  seen = seen || (q >= 0 && keys[k] >= 0 && !(causal && q < keys[k]) &&
                                  std::abs(q - keys[k]) < window);
                if (!seen) continue;
                const auto row = static_cast<std::int64_t>(k);
                if (!expected.empty() && expected.back().first + expected.back().count == row)
                  ++expected.back().count;
                else
                  expected.push_back({row, 1});
              }
              EXPECT_EQ(keys_in_window(mask, queries, keys), expected);
              if (layout == SequenceLayout::kZigzag || from == to) continue;
              std::int64_t rows = 0;
              for (const RowRange& range : expected) rows += range.count;
              EXPECT_EQ(rows_in_window(mask, length, (length + 4) / 5, from, to), rows);
            }
}

}  // namespace
}  // namespace longspan::model
