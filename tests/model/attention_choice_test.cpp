#include "model/attention_choice.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

namespace longspan::model {
namespace {

using enum AttentionSchemeKind;

AttentionGeometry heads(std::int64_t query, std::int64_t kv, AttentionMask mask = {true, 0}) {
  return {query, kv, 64, mask, 0.125f};
}

TEST(AttentionChoice, InnerGroupsAreDivisorsThatHeadsAndNodesAllow) {
  EXPECT_EQ(hybrid_inner(heads(8, 8), 8, 8), 4);
  EXPECT_EQ(hybrid_inner(heads(8, 8), 8, 2), 2);
  EXPECT_EQ(hybrid_inner(heads(8, 8), 16, 8), 8);  // all of a node
  EXPECT_EQ(hybrid_inner(heads(8, 8), 8, 3), 1);   // pairs would straddle nodes
  EXPECT_EQ(hybrid_inner(heads(6, 3), 6, 6), 3);
  EXPECT_EQ(hybrid_inner(heads(6, 6), 12, 12), 6);
  EXPECT_EQ(hybrid_inner(heads(6, 1), 12, 12), 6);  // one key/value head goes to all
  EXPECT_EQ(hybrid_inner(heads(6, 2), 6, 6), 2);    // a third of 2 key/value heads does not exist
  EXPECT_EQ(hybrid_inner(heads(5, 1), 4, 4), 1);    // 5 heads
  for (const int prime : {2, 3, 5, 7}) EXPECT_EQ(hybrid_inner(heads(210, 210), prime, prime), 1);
}

TEST(AttentionChoice, HybridWithoutAGridIsUlyssesOrTheRingAndSaysSo) {
  const SchemeChoice grid = choose_scheme(kHybrid, heads(4, 2), {1, 4096, 4}, 4);
  EXPECT_EQ(grid.scheme, kHybrid);
  EXPECT_EQ(grid.inner, 2);
  EXPECT_NE(grid.why.find("2 x 2 ranks"), std::string::npos) << grid.why;
  const SchemeChoice prime = choose_scheme(kHybrid, heads(3, 3), {1, 4096, 3}, 3);
  EXPECT_EQ(prime.scheme, kUlysses);
  EXPECT_EQ(prime.inner, 1);
  EXPECT_NE(prime.why.find("no divisor of 3 ranks"), std::string::npos) << prime.why;
  // Ulysses would cross nodes, or leave ranks idle.
  EXPECT_EQ(choose_scheme(kHybrid, heads(3, 3), {1, 4096, 3}, 1).scheme, kRing);
  EXPECT_EQ(choose_scheme(kHybrid, heads(5, 1), {1, 4096, 4}, 4).scheme, kRing);
  EXPECT_TRUE(choose_scheme(kHybrid, heads(4, 2), {1, 4096, 1}, 1).why.empty());
}

TEST(AttentionChoice, WhatIsAskedForIsTaken) {
  for (const auto scheme : {kRing, kAllgather, kUlysses}) {
    const SchemeChoice choice = choose_scheme(scheme, heads(5, 1), {1, 64, 7}, 1);
    EXPECT_EQ(choice.scheme, scheme);
    EXPECT_TRUE(choice.why.empty());
  }
  EXPECT_EQ(choose_scheme(kAuto, heads(5, 1), {1, 64, 1}, 1).scheme, kRing);
}

TEST(AttentionChoice, AutoTakesTheRingForLongSequencesAndTheFewestMessagesForShortOnes) {
  const auto choice = [](const AttentionGeometry& geometry, std::int64_t length, int ranks,
                         int ranks_per_node) {
    return choose_scheme(kAuto, geometry, {1, length, ranks}, ranks_per_node);
  };
  for (const int ranks : {2, 3, 4, 8, 16})
    for (const AttentionMask mask : {AttentionMask{true, 0}, {false, 0}, {true, 1024}})
      EXPECT_EQ(choice(heads(8, 2, mask), 131072, ranks, 4).scheme, kRing) << ranks;
  // 32 tokens a rank: one exchange beats many, and with GQA keys and values are small.
  EXPECT_EQ(choice(heads(8, 2), 64, 2, 2).scheme, kAllgather);
  EXPECT_EQ(choice(heads(8, 8), 64, 8, 8).scheme, kUlysses);
  // Heads inside the nodes, the ring between them.
  const SchemeChoice nodes = choice(heads(8, 8), 512, 8, 4);
  EXPECT_EQ(nodes.scheme, kHybrid);
  EXPECT_EQ(nodes.inner, 4);
  EXPECT_NE(nodes.why.find("hybrid of 4 x 2 ranks"), std::string::npos) << nodes.why;
  // Heads that cannot be shared evenly leave ranks idle.
  EXPECT_NE(choice(heads(3, 3), 4096, 4, 4).scheme, kUlysses);
}

// Section 6: a ring step is hidden from n* = b F / (g B) tokens per rank on, causal; on a node of
// cores that is 30 / g.
TEST(AttentionChoice, TheRingIsHiddenFromTheTokensThatSectionSixSays) {
  const auto exposed = [](std::int64_t tokens, int ranks, std::int64_t kv) {
    const SequenceSharing sharing{1, tokens * ranks, ranks};
    const AttentionGeometry geometry = heads(8, kv);
    const std::int64_t last = 4 * 2 * tokens * geometry.kv_width();  // the last hop of gradients
    return attention_seconds(kRing, geometry, sharing, ranks).exposed -
           (static_cast<double>(last) / 4e9 + 50e-6);
  };
  for (const std::int64_t kv : {8, 2}) {
    EXPECT_NEAR(exposed(4096, 4, kv), 0, 1e-12);
    EXPECT_GT(exposed(16, 4, kv), 1e-5);
  }
  // Work and evenly shared heads do not depend on the scheme.
  const SequenceSharing sharing{2, 2048, 4};
  const double compute = attention_seconds(kRing, heads(8, 8), sharing, 4).compute;
  EXPECT_NEAR(compute, 14.0 * 2 * (2048.0 * 2049 / 2) * 8 * 64 / 4 / 30e9, 1e-9);
  EXPECT_EQ(attention_seconds(kUlysses, heads(8, 8), sharing, 4).compute, compute);
  // Seven heads on four ranks: two each, an eighth of the work more than an even share.
  const double uneven = attention_seconds(kUlysses, heads(7, 7), sharing, 4).exposed,
               even = attention_seconds(kUlysses, heads(8, 8), sharing, 4).exposed;
  EXPECT_GT(uneven, even + 0.1 * compute * 7 / 8);
}

}  // namespace
}  // namespace longspan::model
