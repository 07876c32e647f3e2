// The attention kernel against the dense oracle in double. Bounds: notes/long-sequences.md 9.3.
#include <gtest/gtest.h>
#include <hwy/targets.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "model/kernels/cpu/attention.hpp"
#include "parallel/error.hpp"
#include "support/attention_problem.hpp"
#include "support/attention_reference.hpp"

namespace longspan {
namespace {

using model::AttentionMask;
using model::AttentionShape;
using testing_support::attention_backward;
using testing_support::attention_forward;
using testing_support::attention_reference;
using testing_support::AttentionForward;
using testing_support::AttentionGradients;
using testing_support::AttentionInputs;
using testing_support::AttentionOutputs;
using testing_support::AttentionProblem;
using testing_support::counting;
using testing_support::largest_error;
using testing_support::relative_error;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kRelative = 2e-6, kAbsoluteLse = 1e-5;

using Floats = std::vector<float>;
using Ints = std::vector<std::int32_t>;

void expect_equal_to_oracle(AttentionProblem& problem, std::int64_t gap = 0) {
  const AttentionOutputs expected = problem.reference();
  const AttentionForward actual = attention_forward(problem, gap);
  EXPECT_LE(relative_error(actual.o, expected.o), kRelative);
  EXPECT_LE(largest_error(actual.lse, expected.lse), kAbsoluteLse);
  EXPECT_TRUE(actual.gaps_are_untouched);
  const AttentionGradients gradients = attention_backward(problem, actual, gap);
  // One visible key has probability 1 whatever its score: dq and dk are 0, and only the absolute
  // error has a meaning.
  const bool scores_matter = problem.shape.keys > 1 && problem.shape.mask.window != 1;
  const double floor = scores_matter ? 0.0 : std::sqrt(static_cast<double>(gradients.dq.size()));
  EXPECT_LE(relative_error(gradients.dq, expected.dq, floor), kRelative);
  EXPECT_LE(relative_error(gradients.dk, expected.dk, floor), kRelative);
  EXPECT_LE(relative_error(gradients.dv, expected.dv), kRelative);
  EXPECT_TRUE(gradients.gaps_are_untouched);
}

TEST(AttentionReference, GradientsAreThoseOfFiniteDifferences) {
  AttentionProblem problem(2, 7, 9, 4, 2, 4, {.causal = true, .window = 5});
  const AttentionShape& shape = problem.with_documents().bind();
  const auto wide = [](const Floats& x) { return std::vector<double>(x.begin(), x.end()); };
  AttentionInputs inputs{wide(problem.q), wide(problem.k), wide(problem.v), wide(problem.dout)};
  const AttentionOutputs exact = attention_reference(shape, inputs);
  const auto loss = [&] {
    const std::vector<double> o = attention_reference(shape, inputs).o;
    return std::inner_product(o.begin(), o.end(), inputs.dout.begin(), 0.0);
  };
  const auto check = [&](std::vector<double>& x, const std::vector<double>& gradient,
                         const char* name) {
    for (std::size_t i = 0; i < x.size(); i += 3) {
      const double at = x[i], step = 1e-5;
      x[i] = at + step;
      const double above = loss();
      x[i] = at - step;
      const double below = loss();
      x[i] = at;
      EXPECT_NEAR(gradient[i], (above - below) / (2 * step), 1e-8) << name << '[' << i << ']';
    }
  };
  check(inputs.q, exact.dq, "dq");
  check(inputs.k, exact.dk, "dk");
  check(inputs.v, exact.dv, "dv");
}

struct Variant {
  std::string name;
  std::int64_t batch, queries, keys, heads, kv_heads, head_size;
  AttentionMask mask;
  bool documents = false;
};

class AttentionKernel : public testing::TestWithParam<Variant> {};

TEST_P(AttentionKernel, EqualsTheOracle) {
  const Variant& t = GetParam();
  AttentionProblem problem(t.batch, t.queries, t.keys, t.heads, t.kv_heads, t.head_size, t.mask);
  if (t.documents) problem.with_documents();
  expect_equal_to_oracle(problem, 12);
}

constexpr AttentionMask kCausal{true, 0}, kFull{false, 0};
INSTANTIATE_TEST_SUITE_P(
    Variants, AttentionKernel,
    testing::Values(
        Variant{"causal", 1, 256, 256, 2, 2, 64, kCausal},
        Variant{"full", 1, 192, 192, 2, 2, 64, kFull},
        Variant{"causal_window", 1, 300, 300, 1, 1, 64, {true, 70}},
        Variant{"full_window", 2, 211, 211, 1, 1, 32, {false, 33}},
        Variant{"window_of_one", 1, 130, 130, 1, 1, 16, {true, 1}},
        Variant{"window_beyond_32_bits", 1, 70, 70, 1, 1, 16, {false, std::int64_t{1} << 40}},
        Variant{"documents", 2, 257, 257, 2, 1, 64, kCausal, true},
        Variant{"documents_full", 2, 200, 200, 2, 2, 16, kFull, true},
        Variant{"documents_window", 3, 190, 190, 1, 1, 64, {true, 40}, true},
        Variant{"grouped_heads", 2, 150, 150, 8, 2, 32, kCausal},
        Variant{"one_kv_head", 1, 100, 100, 12, 1, 16, kFull},
        Variant{"one_query", 2, 1, 333, 4, 2, 64, kCausal},
        Variant{"one_key", 1, 100, 1, 2, 1, 64, kFull},
        Variant{"one_of_each", 1, 1, 1, 1, 1, 8, kCausal},
        Variant{"few_queries_many_keys", 1, 37, 700, 2, 1, 64, kCausal},
        Variant{"many_queries_few_keys", 1, 500, 61, 1, 1, 64, kFull},
        Variant{"odd_sizes", 3, 97, 193, 3, 3, 20, kCausal},
        Variant{"head_8", 1, 120, 120, 2, 2, 8, kCausal},
        Variant{"head_12", 1, 120, 120, 2, 1, 12, kCausal},
        Variant{"head_36", 1, 120, 140, 2, 1, 36, kCausal},
        Variant{"head_80", 1, 120, 140, 2, 1, 80, kCausal},
        Variant{"head_96", 1, 100, 100, 1, 1, 96, kFull},
        Variant{"head_100", 1, 100, 100, 1, 1, 100, kFull},
        Variant{"head_128", 1, 300, 300, 2, 1, 128, kCausal},
        Variant{"head_256", 1, 130, 130, 1, 1, 256, kCausal},
        // More than one chunk of queries and of keys in the backward, with one head.
        Variant{"many_chunks", 1, 1100, 1300, 1, 1, 16, kCausal},
        Variant{"many_chunks_grouped", 1, 400, 900, 4, 1, 16, kCausal}),
    [](const auto& tested) { return tested.param.name; });

TEST(AttentionKernel, EqualsTheOracleOnEveryInstructionSet) {
  const std::int64_t best = hwy::SupportedTargets();
  for (std::int64_t targets = best; targets != 0; targets &= targets - 1) {
    const std::int64_t lowest = targets & -targets;
    SCOPED_TRACE(hwy::TargetName(lowest));
    hwy::SetSupportedTargetsForTest(lowest);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    for (std::int64_t head_size : {20, 64}) {
      AttentionProblem problem(1, 205, 230, 2, 1, head_size, {.causal = true, .window = 150});
      expect_equal_to_oracle(problem.with_documents());
    }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

/// Positions need not be in order: any permutation of the tokens is the same attention.
TEST(AttentionKernel, FollowsPositionsNotIndices) {
  AttentionProblem problem(1, 180, 220, 2, 1, 32, {.causal = true, .window = 90});
  for (std::int64_t i = 0; i < 180; ++i)
    problem.query_positions[i] = static_cast<std::int32_t>(i * 77 % 180 + 40);
  for (std::int64_t j = 0; j < 220; ++j)
    problem.key_positions[j] = static_cast<std::int32_t>(j * 87 % 220);
  expect_equal_to_oracle(problem.with_documents());
}

TEST(AttentionKernel, MergesBlocksOfKeysInAnyOrder) {
  AttentionProblem whole(1, 210, 330, 4, 2, 32, {.causal = true, .window = 250});
  whole.with_documents();
  const AttentionOutputs expected = whole.reference();
  const std::vector<Ints> blocks = {counting(100), counting(7, 100), counting(150, 107),
                                    counting(73, 257)};
  std::vector<int> order = {0, 1, 2, 3};
  do {
    AttentionForward merged;
    for (std::size_t i = 0; i < order.size(); ++i) {
      AttentionProblem part = whole.slice(counting(210), blocks[order[i]]);
      merged = attention_forward(part, 4, i == 0 ? nullptr : &merged, i + 1 < order.size());
    }
    ASSERT_LE(relative_error(merged.o, expected.o), kRelative);
    ASSERT_LE(largest_error(merged.lse, expected.lse), kAbsoluteLse);
  } while (std::next_permutation(order.begin(), order.end()));
}

/// Rank r of P holds chunks r and 2P-1-r, with some padding behind; blocks of keys pass in ring
/// order.
TEST(AttentionKernel, ZigzagShardsEqualDenseForwardAndBackward) {
  for (const bool documents : {false, true}) {
    constexpr int kRanks = 3, kTokens = 330, kChunk = 56;  // 6 padding tokens
    AttentionProblem whole(2, kTokens + 6, kTokens + 6, 4, 2, 64);
    for (int i = 0; i < 6; ++i)
      whole.query_positions[kTokens + i] = whole.key_positions[kTokens + i] = -1;
    if (documents) whole.with_documents();
    const AttentionOutputs expected = whole.reference();
    std::vector<Ints> shards;
    for (int r = 0; r < kRanks; ++r) {
      Ints own = counting(kChunk, r * kChunk),
           late = counting(kChunk, (2 * kRanks - 1 - r) * kChunk);
      own.insert(own.end(), late.begin(), late.end());
      shards.push_back(own);
    }
    const std::int64_t width = 4 * 64, kv_width = 2 * 64, tokens = kTokens + 6, local = 2 * kChunk;
    Floats o(2 * tokens * width), lse(2 * 4 * tokens), dq(o.size()), dk(2 * tokens * kv_width),
        dv(dk.size());
    const auto scatter_add = [&](const Floats& from, std::int64_t row, const Ints& to_tokens,
                                 Floats& to) {
      for (std::int64_t b = 0; b < 2; ++b)
        for (std::int64_t i = 0; i < local; ++i)
          for (std::int64_t d = 0; d < row; ++d)
            to[(b * tokens + to_tokens[i]) * row + d] += from[(b * local + i) * row + d];
    };
    for (int r = 0; r < kRanks; ++r) {
      AttentionForward merged;
      for (int step = 0; step < kRanks; ++step) {
        AttentionProblem part = whole.slice(shards[r], shards[(r + step) % kRanks]);
        merged = attention_forward(part, 0, step == 0 ? nullptr : &merged, step + 1 < kRanks);
      }
      scatter_add(merged.o, width, shards[r], o);
      for (std::int64_t row = 0; row < 2 * 4; ++row)
        for (std::int64_t i = 0; i < local; ++i)
          lse[row * tokens + shards[r][i]] = merged.lse[row * local + i];
      for (int step = 0; step < kRanks; ++step) {
        const Ints& keys = shards[(r + step) % kRanks];
        AttentionProblem part = whole.slice(shards[r], keys);
        const AttentionGradients gradients = attention_backward(part, merged);
        scatter_add(gradients.dq, width, shards[r], dq);
        scatter_add(gradients.dk, kv_width, keys, dk);
        scatter_add(gradients.dv, kv_width, keys, dv);
      }
    }
    EXPECT_LE(relative_error(o, expected.o), kRelative);
    EXPECT_LE(largest_error(lse, expected.lse), kAbsoluteLse);
    EXPECT_LE(relative_error(dq, expected.dq), kRelative);
    EXPECT_LE(relative_error(dk, expected.dk), kRelative);
    EXPECT_LE(relative_error(dv, expected.dv), kRelative);
  }
}

/// Some rows see nothing, and what stands at padding is NaN: neither may show anywhere.
TEST(AttentionKernel, RowsThatSeeNothingAreZeroAndPaddingIsNeverRead) {
  AttentionProblem problem(2, 230, 260, 2, 1, 64);
  for (std::int64_t i = 0; i < 230; ++i)
    if (i % 5 == 0 || (i >= 96 && i < 200)) problem.query_positions[i] = -1;
  for (std::int64_t j = 0; j < 260; ++j)
    if (j < 33 || j % 7 == 0) problem.key_positions[j] = -1;
  problem.query_positions[1] = 20;  // every key it could see is padding
  const AttentionOutputs expected = problem.reference();
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t i = 0; i < 230; ++i)
      if (problem.query_positions[i] < 0)
        std::fill_n(problem.q.begin() + (b * 230 + i) * 2 * 64, 2 * 64, kNan);
    for (std::int64_t j = 0; j < 260; ++j) {
      if (problem.key_positions[j] >= 0) continue;
      std::fill_n(problem.k.begin() + (b * 260 + j) * 64, 64, kNan);
      std::fill_n(problem.v.begin() + (b * 260 + j) * 64, 64, kNan);
    }
  }
  const AttentionForward actual = attention_forward(problem, 4);
  EXPECT_LE(relative_error(actual.o, expected.o), kRelative);
  EXPECT_LE(largest_error(actual.lse, expected.lse), kAbsoluteLse);
  EXPECT_EQ(actual.lse[1], -kInfinity);
  for (std::int64_t d = 0; d < 2 * 64; ++d) EXPECT_EQ(actual.o[2 * 64 + d], 0.0f);
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t i = 0; i < 230; ++i)
      if (problem.query_positions[i] < 0)
        std::fill_n(problem.dout.begin() + (b * 230 + i) * 2 * 64, 2 * 64, kNan);
  const AttentionGradients gradients = attention_backward(problem, actual);
  EXPECT_LE(relative_error(gradients.dq, expected.dq), kRelative);
  EXPECT_LE(relative_error(gradients.dk, expected.dk), kRelative);
  EXPECT_LE(relative_error(gradients.dv, expected.dv), kRelative);
  for (std::int64_t d = 0; d < 2 * 64; ++d) EXPECT_EQ(gradients.dq[2 * 64 + d], 0.0f);
}

TEST(AttentionKernel, NothingVisibleAtAll) {
  AttentionProblem problem(1, 130, 140, 2, 2, 64);
  problem.key_positions.assign(140, -1);
  AttentionForward actual = attention_forward(problem);
  EXPECT_EQ(actual.o, Floats(actual.o.size(), 0.0f));
  EXPECT_EQ(actual.lse, Floats(actual.lse.size(), -kInfinity));
  EXPECT_EQ(attention_backward(problem, actual).dq, Floats(actual.o.size(), 0.0f));
  // Merging nothing into something, something into nothing, and nothing into nothing.
  AttentionProblem visible(1, 130, 140, 2, 2, 64, kFull);
  const AttentionForward something = attention_forward(visible);
  const AttentionForward first = attention_forward(visible, 0, nullptr, true);
  const AttentionForward kept = attention_forward(problem, 0, &first);
  EXPECT_EQ(kept.o, something.o);
  EXPECT_EQ(kept.lse, something.lse);
  const AttentionForward nothing = attention_forward(problem, 0, nullptr, true);
  const AttentionForward started = attention_forward(visible, 0, &nothing);
  EXPECT_EQ(started.o, something.o);
  EXPECT_EQ(started.lse, something.lse);
  const AttentionForward still_nothing = attention_forward(problem, 0, &nothing);
  EXPECT_EQ(still_nothing.o, actual.o);
  EXPECT_EQ(still_nothing.lse, actual.lse);
}

TEST(AttentionKernel, NoKeysAndNoQueries) {
  AttentionProblem no_keys(1, 10, 0, 1, 1, 16);
  const AttentionForward actual = attention_forward(no_keys);
  EXPECT_EQ(actual.o, Floats(10 * 16, 0.0f));
  EXPECT_EQ(actual.lse, Floats(10, -kInfinity));
  EXPECT_EQ(attention_backward(no_keys, actual).dq, Floats(10 * 16, 0.0f));
  AttentionProblem no_queries(1, 0, 10, 1, 1, 16);
  EXPECT_EQ(attention_backward(no_queries, attention_forward(no_queries)).dk,
            Floats(10 * 16, 0.0f));
}

/// Logits of +-1e4 that are exact in fp32, so that the oracle's answer is the kernel's too.
TEST(AttentionKernel, HugeLogitsNeitherOverflowNorVanish) {
  AttentionProblem problem(1, 150, 200, 1, 1, 16, kFull);
  problem.shape.scale = 1.0f;
  for (float& x : problem.q) x = 0.0f;
  for (float& x : problem.k) x = 0.0f;
  for (std::int64_t i = 0; i < 150; ++i) problem.q[i * 16] = i % 3 == 0 ? 100.0f : -100.0f;
  for (std::int64_t j = 0; j < 200; ++j)
    problem.k[j * 16] = (j % 2 ? 100.0f : -100.0f) + static_cast<float>(j % 8) / 128.0f;
  const AttentionOutputs expected = problem.reference();
  const AttentionForward actual = attention_forward(problem);
  EXPECT_LE(relative_error(actual.o, expected.o), kRelative);
  // fp32 has 1e-3 between neighbours here.
  EXPECT_LE(largest_error(actual.lse, expected.lse), 2e-3);
  const AttentionGradients gradients = attention_backward(problem, actual);
  // And the stored lse moves every p of a row by as much; in dq the keys' common part of 100 then
  // fails to cancel.
  EXPECT_LE(relative_error(gradients.dv, expected.dv), 1e-3);
  EXPECT_LE(relative_error(gradients.dq, expected.dq), 2e-2);
  // Blocks whose maxima lie 2e4 apart.
  Ints low, high;
  for (std::int32_t j = 0; j < 200; ++j) (j % 2 ? high : low).push_back(j);
  for (const bool high_first : {false, true}) {
    AttentionProblem first = problem.slice(counting(150), high_first ? high : low);
    AttentionProblem second = problem.slice(counting(150), high_first ? low : high);
    first.shape.scale = second.shape.scale = 1.0f;
    const AttentionForward start = attention_forward(first, 0, nullptr, true);
    const AttentionForward merged = attention_forward(second, 0, &start);
    EXPECT_LE(relative_error(merged.o, expected.o), kRelative);
    EXPECT_LE(largest_error(merged.lse, expected.lse), 2e-3);
  }
}

TEST(AttentionKernel, NanInAQueryOrKeyIsNotHidden) {
  AttentionProblem problem(1, 120, 120, 1, 1, 16);
  problem.q[50 * 16 + 3] = kNan;
  const Floats o = attention_forward(problem).o;
  for (std::int64_t i = 0; i < 120; ++i) EXPECT_EQ(std::isnan(o[i * 16]), i == 50) << "query " << i;
  AttentionProblem with_key(1, 120, 120, 1, 1, 16);
  with_key.k[70 * 16] = kNan;
  const Floats o_key = attention_forward(with_key).o;
  for (std::int64_t i = 0; i < 120; ++i)
    EXPECT_EQ(std::isnan(o_key[i * 16]), i >= 70) << "query " << i;
  // Nor by blocks of keys that come after it.
  AttentionProblem part = problem.slice(counting(120), counting(60));
  const AttentionForward start = attention_forward(part, 0, nullptr, true);
  part = problem.slice(counting(120), counting(60, 60));
  const Floats o_merged = attention_forward(part, 0, &start).o;
  for (std::int64_t i = 0; i < 120; ++i)
    EXPECT_EQ(std::isnan(o_merged[i * 16]), i == 50) << "query " << i;
}

TEST(AttentionKernel, GradientsAccumulate) {
  AttentionProblem problem(1, 150, 150, 2, 1, 64);
  const AttentionForward saved = attention_forward(problem);
  const AttentionGradients from_zero = attention_backward(problem, saved),
                           from_ten = attention_backward(problem, saved, 4, 10.0f);
  const auto expect_shifted = [](const Floats& plain, const Floats& shifted) {
    for (std::size_t i = 0; i < plain.size(); ++i)
      ASSERT_NEAR(plain[i] + 10.0f, shifted[i], 4e-6) << i;
  };
  expect_shifted(from_zero.dq, from_ten.dq);
  expect_shifted(from_zero.dk, from_ten.dk);
  expect_shifted(from_zero.dv, from_ten.dv);
}

TEST(AttentionKernel, SameBitsOnEveryRunAndThreadCount) {
  AttentionProblem problem(1, 1300, 1300, 2, 1, 16);
  const int threads = omp_get_max_threads();
  AttentionForward first;
  AttentionGradients first_gradients;
  for (const int count : {1, 2, 3, 3, 7}) {
    omp_set_num_threads(count);
    const AttentionForward again = attention_forward(problem);
    const AttentionGradients gradients = attention_backward(problem, again);
    if (count > 1) {
      EXPECT_EQ(again.o, first.o) << count << " threads";
      EXPECT_EQ(again.lse, first.lse) << count << " threads";
      EXPECT_EQ(gradients.dq, first_gradients.dq) << count << " threads";
      EXPECT_EQ(gradients.dk, first_gradients.dk) << count << " threads";
      EXPECT_EQ(gradients.dv, first_gradients.dv) << count << " threads";
    } else {
      first = again;
      first_gradients = gradients;
    }
  }
  omp_set_num_threads(threads);
}

TEST(AttentionKernel, RefusesShapesOutsideTheContract) {
  AttentionProblem odd_size(1, 4, 4, 1, 1, 18);
  EXPECT_THROW(attention_forward(odd_size), Error);
  AttentionProblem uneven_heads(1, 4, 4, 3, 2, 16);
  EXPECT_THROW(attention_forward(uneven_heads), Error);
  AttentionProblem in_blocks(1, 4, 4, 1, 1, 16);
  const auto with = [&](bool merge, bool more) {
    model::AttentionForwardArgs args;  // without `sum`
    args.shape = in_blocks.bind();
    args.merge = merge, args.more = more;
    model::cpu::attention_forward(args);
  };
  EXPECT_THROW(with(true, false), Error);
  EXPECT_THROW(with(false, true), Error);
}

TEST(VisiblePairs, CountsWhatTheMaskShows) {
  for (const AttentionMask mask :
       {kCausal, kFull, AttentionMask{true, 20}, AttentionMask{false, 20}}) {
    for (const bool documents : {false, true}) {
      AttentionProblem problem(1, 150, 210, 1, 1, 8, mask);
      for (std::int64_t i = 0; i < 150; i += 9) problem.query_positions[i] = -1;
      for (std::int64_t j = 0; j < 210; ++j)
        problem.key_positions[j] = static_cast<std::int32_t>(j * 11 % 210);
      for (std::int64_t j = 3; j < 210; j += 13) problem.key_positions[j] = -1;
      if (documents) problem.with_documents();
      const AttentionShape& shape = problem.bind();
      std::int64_t expected = 0;
      for (std::int64_t i = 0; i < 150; ++i)
        for (std::int64_t j = 0; j < 210; ++j)
          expected += testing_support::is_visible(shape, 0, i, j);
      EXPECT_EQ(model::visible_pairs(shape), expected);
    }
  }
}

}  // namespace
}  // namespace longspan
