#include "support/attention_cases.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>

namespace longspan::testing_support {
namespace {

using model::AttentionMask;
using Floats = std::vector<float>;
using Ints = std::vector<std::int32_t>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr AttentionMask kCausal{true, 0}, kFull{false, 0};

/// The tokens of a rank's two chunks.
Ints zigzag_tokens(int rank, int ranks, int chunk) {
  Ints all = counting(chunk, rank * chunk), late = counting(chunk, (2 * ranks - 1 - rank) * chunk);
  all.insert(all.end(), late.begin(), late.end());
  return all;
}

}  // namespace

AttentionProblem& AttentionSubject::prepare(AttentionProblem& problem) const {
  problem.shape.bf16_operands = bf16;
  return bf16 ? problem.rounded_to_bf16() : problem;
}

void expect_equal(const AttentionSubject& subject, const AttentionForward& actual,
                  const AttentionOutputs& expected) {
  EXPECT_LE(relative_error(actual.o, expected.o), subject.bound());
  EXPECT_LE(largest_error(actual.lse, expected.lse), kAttentionLseBound);
}

void expect_equal(const AttentionSubject& subject, const AttentionGradients& actual,
                  const AttentionOutputs& expected, double floor) {
  EXPECT_LE(relative_error(actual.dq, expected.dq, floor), subject.bound());
  EXPECT_LE(relative_error(actual.dk, expected.dk, floor), subject.bound());
  EXPECT_LE(relative_error(actual.dv, expected.dv), subject.bound());
}

void expect_equal_to_oracle(const AttentionSubject& subject, AttentionProblem& problem,
                            std::int64_t gap) {
  const AttentionOutputs expected = subject.prepare(problem).reference();
  const AttentionForward actual = subject.forward(problem, gap);
  expect_equal(subject, actual, expected);
  EXPECT_TRUE(actual.gaps_are_untouched);
  const AttentionGradients gradients = subject.backward(problem, actual, gap);
  // One visible key has probability 1 whatever its score: dq and dk are 0, and only the absolute
  // error has a meaning.
  const bool scores_matter = problem.shape.keys > 1 && problem.shape.mask.window != 1;
  const double floor = scores_matter ? 0.0 : std::sqrt(static_cast<double>(gradients.dq.size()));
  expect_equal(subject, gradients, expected, floor);
  EXPECT_TRUE(gradients.gaps_are_untouched);
}

AttentionProblem AttentionVariant::problem() const {
  AttentionProblem made(batch, queries, keys, heads, kv_heads, head_size, mask);
  if (documents) made.with_documents();
  return made;
}

void PrintTo(const AttentionVariant& variant, std::ostream* out) {
  *out << variant.name;
}

std::vector<AttentionVariant> attention_variants() {
  return {
      {"causal", 1, 256, 256, 2, 2, 64, kCausal},
      {"full", 1, 192, 192, 2, 2, 64, kFull},
      {"causal_window", 1, 300, 300, 1, 1, 64, {true, 70}},
      {"full_window", 2, 211, 211, 1, 1, 64, {false, 33}},
      {"full_window_head_32", 2, 211, 211, 1, 1, 32, {false, 33}},
      {"window_of_one", 1, 130, 130, 1, 1, 64, {true, 1}},
      {"window_of_one_head_16", 1, 130, 130, 1, 1, 16, {true, 1}},
      {"window_beyond_32_bits", 1, 70, 70, 1, 1, 64, {false, std::int64_t{1} << 40}},
      {"window_beyond_32_bits_head_16", 1, 70, 70, 1, 1, 16, {false, std::int64_t{1} << 40}},
      {"documents", 2, 197, 197, 2, 1, 64, kCausal, true},
      {"documents_257", 2, 257, 257, 2, 1, 64, kCausal, true},
      {"documents_full", 2, 150, 150, 1, 1, 64, kFull, true},
      {"documents_full_head_16", 2, 200, 200, 2, 2, 16, kFull, true},
      {"documents_window", 3, 190, 190, 1, 1, 64, {true, 40}, true},
      {"grouped_heads", 1, 90, 100, 8, 2, 64, kCausal},
      {"grouped_heads_32", 2, 150, 150, 8, 2, 32, kCausal},
      {"one_kv_head", 1, 100, 100, 12, 1, 16, kFull},
      {"one_query", 2, 1, 150, 2, 1, 64, kCausal},
      {"one_query_333_keys", 2, 1, 333, 4, 2, 64, kCausal},
      {"one_key", 1, 100, 1, 2, 1, 64, kFull},
      {"one_of_each", 1, 1, 1, 1, 1, 64, kCausal},
      {"one_of_each_head_8", 1, 1, 1, 1, 1, 8, kCausal},
      {"few_queries_many_keys", 1, 37, 500, 1, 1, 64, kCausal},
      {"few_queries_many_keys_grouped", 1, 37, 700, 2, 1, 64, kCausal},
      {"many_queries_few_keys", 1, 500, 61, 1, 1, 64, kFull},
      // More than the 32 tiles that a warp looks at together, most of them hidden.
      {"many_tiles", 1, 1100, 2200, 1, 1, 4, {true, 90}},
      {"many_key_tiles", 1, 70, 2200, 1, 1, 64, {true, 90}},
      {"many_query_tiles", 1, 2200, 70, 1, 1, 64, {true, 5}},
      // More than one chunk of queries and of keys in the CPU's backward, with one head.
      {"many_chunks", 1, 1100, 1300, 1, 1, 16, kCausal},
      {"many_chunks_grouped", 1, 400, 900, 4, 1, 16, kCausal},
      {"head_4", 1, 120, 130, 2, 1, 4, kCausal},
      {"head_8", 1, 120, 120, 2, 2, 8, kCausal},
      {"head_12", 1, 120, 120, 2, 1, 12, kCausal},
      {"head_20", 3, 97, 193, 3, 3, 20, kCausal},
      {"head_36", 1, 120, 140, 2, 1, 36, kCausal},
      {"head_80", 1, 120, 140, 2, 1, 80, kCausal},
      {"head_96", 1, 100, 100, 1, 1, 96, kFull},
      {"head_100", 1, 100, 100, 1, 1, 100, kFull},
      {"head_128", 1, 200, 200, 2, 1, 128, kCausal},
      {"head_128_300", 1, 300, 300, 2, 1, 128, kCausal},
      {"head_128_documents", 2, 140, 110, 2, 1, 128, {false, 60}, true},
      {"head_132", 1, 65, 70, 1, 1, 132, kFull},
      {"head_256", 1, 90, 100, 2, 1, 256, kCausal},
      {"head_256_130", 1, 130, 130, 1, 1, 256, kCausal},
  };
}

void expect_positions_not_indices(const AttentionSubject& subject, std::int64_t head_size) {
  AttentionProblem problem(1, 180, 220, 2, 1, head_size, {.causal = true, .window = 90});
  for (std::int64_t i = 0; i < 180; ++i)
    problem.query_positions[i] = static_cast<std::int32_t>(i * 77 % 180 + 40);
  for (std::int64_t j = 0; j < 220; ++j)
    problem.key_positions[j] = static_cast<std::int32_t>(j * 87 % 220);
  expect_equal_to_oracle(subject, problem.with_documents());
}

void expect_blocks_merge_in_any_order(const AttentionSubject& subject, std::int64_t head_size,
                                      std::int64_t queries, const Ints& blocks) {
  std::vector<Ints> keys;
  std::vector<int> order;
  std::int32_t all = 0;
  for (const std::int32_t block : blocks) {
    order.push_back(static_cast<int>(keys.size()));
    keys.push_back(counting(block, all));
    all += block;
  }
  AttentionProblem whole(1, queries, all, 4, 2, head_size, {.causal = true, .window = 250});
  whole.with_documents();
  const AttentionOutputs expected = subject.prepare(whole).reference();
  do {
    AttentionForward merged;
    for (std::size_t i = 0; i < order.size(); ++i) {
      AttentionProblem part = whole.slice(counting(queries), keys[order[i]]);
      merged = subject.forward(subject.prepare(part), 4, i == 0 ? nullptr : &merged,
                               i + 1 < order.size());
      EXPECT_TRUE(merged.gaps_are_untouched);
    }
    expect_equal(subject, merged, expected);
    if (testing::Test::HasFailure()) return;
  } while (std::next_permutation(order.begin(), order.end()));
}

void expect_zigzag_shards_equal_dense(const AttentionSubject& subject, const ZigzagCase& tested) {
  const auto [ranks, chunk, batch, heads, kv_heads, documents] = tested;
  const std::int64_t tokens = 2 * ranks * chunk, local = 2 * chunk;
  AttentionProblem whole(batch, tokens, tokens, heads, kv_heads, 64);
  for (std::int64_t i = tokens - 6; i < tokens; ++i)
    whole.query_positions[i] = whole.key_positions[i] = -1;
  if (documents) whole.with_documents();
  const AttentionOutputs expected = subject.prepare(whole).reference();
  const std::int64_t width = heads * 64, kv_width = kv_heads * 64;
  AttentionForward o{Floats(batch * tokens * width), Floats(batch * heads * tokens), {}};
  AttentionGradients all{Floats(o.o.size()), Floats(batch * tokens * kv_width),
                         Floats(batch * tokens * kv_width)};
  const auto scatter_add = [&, batch = batch](const Floats& from, std::int64_t row,
                                              const Ints& to_tokens, Floats& to) {
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t i = 0; i < local; ++i)
        for (std::int64_t d = 0; d < row; ++d)
          to[(b * tokens + to_tokens[i]) * row + d] += from[(b * local + i) * row + d];
  };
  std::vector<Ints> shards;
  for (int r = 0; r < ranks; ++r) shards.push_back(zigzag_tokens(r, ranks, chunk));
  for (int r = 0; r < ranks; ++r) {
    AttentionForward merged;
    for (int step = 0; step < ranks; ++step) {
      AttentionProblem part = whole.slice(shards[r], shards[(r + step) % ranks]);
      merged = subject.forward(subject.prepare(part), 0, step == 0 ? nullptr : &merged,
                               step + 1 < ranks);
    }
    scatter_add(merged.o, width, shards[r], o.o);
    for (std::int64_t row = 0; row < batch * heads; ++row)
      for (std::int64_t i = 0; i < local; ++i)
        o.lse[row * tokens + shards[r][i]] = merged.lse[row * local + i];
    for (int step = 0; step < ranks; ++step) {
      const Ints& keys = shards[(r + step) % ranks];
      AttentionProblem part = whole.slice(shards[r], keys);
      const AttentionGradients gradients = subject.backward(subject.prepare(part), merged);
      scatter_add(gradients.dq, width, shards[r], all.dq);
      scatter_add(gradients.dk, kv_width, keys, all.dk);
      scatter_add(gradients.dv, kv_width, keys, all.dv);
    }
  }
  expect_equal(subject, o, expected);
  expect_equal(subject, all, expected);
}

void expect_known_runs_change_nothing(const AttentionSubject& subject, int chunk,
                                      std::int64_t window) {
  const int ranks = 2, tokens = 2 * ranks * chunk;
  AttentionProblem whole(1, tokens, tokens, 4, 2, 64, {.causal = true, .window = window});
  const AttentionOutputs expected = subject.prepare(whole).reference();
  whole.shape.query_runs = whole.shape.key_runs = {1, {{0, tokens}, {}}};
  const AttentionForward once = subject.forward(whole);
  expect_equal(subject, once, expected);
  expect_equal(subject, subject.backward(whole, once), expected);
  // The late chunk and the early one of the last rank, against all shards.
  const auto runs = [&](int rank) {
    return model::PositionRuns{2, {{rank * chunk, chunk}, {(2 * ranks - 1 - rank) * chunk, chunk}}};
  };
  AttentionForward merged;
  Floats dq(2 * chunk * 4 * 64);
  std::vector<AttentionProblem> parts;
  const Ints own = zigzag_tokens(1, ranks, chunk);
  for (int step = 0; step < ranks; ++step) {
    const int other = (1 + step) % ranks;
    parts.push_back(whole.slice(own, zigzag_tokens(other, ranks, chunk)));
    subject.prepare(parts.back()).shape.query_runs = runs(1);
    parts.back().shape.key_runs = runs(other);
    merged = subject.forward(parts.back(), 0, step == 0 ? nullptr : &merged, step + 1 < ranks);
  }
  for (AttentionProblem& part : parts) {
    const Floats share = subject.backward(part, merged).dq;
    for (std::size_t i = 0; i < dq.size(); ++i) dq[i] += share[i];
  }
  std::vector<double> expected_o, expected_dq;
  for (const std::int32_t token : own)
    for (int d = 0; d < 4 * 64; ++d) {
      expected_o.push_back(expected.o[token * 4 * 64 + d]);
      expected_dq.push_back(expected.dq[token * 4 * 64 + d]);
    }
  EXPECT_LE(relative_error(merged.o, expected_o), subject.bound());
  EXPECT_LE(relative_error(dq, expected_dq), subject.bound());
}

void expect_padding_is_never_read(const AttentionSubject& subject) {
  AttentionProblem problem(2, 230, 260, 2, 1, 64);
  for (std::int64_t i = 0; i < 230; ++i)
    if (i % 5 == 0 || (i >= 96 && i < 200)) problem.query_positions[i] = -1;
  for (std::int64_t j = 0; j < 260; ++j)
    if (j < 33 || j % 7 == 0) problem.key_positions[j] = -1;
  problem.query_positions[1] = 20;  // every key it could see is padding
  const AttentionOutputs expected = subject.prepare(problem).reference();
  const auto hide = [](Floats& x, const Ints& positions, std::int64_t width) {
    const auto tokens = static_cast<std::int64_t>(positions.size());
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t i = 0; i < tokens; ++i)
        if (positions[i] < 0) std::fill_n(x.begin() + (b * tokens + i) * width, width, kNan);
  };
  hide(problem.q, problem.query_positions, 2 * 64);
  hide(problem.k, problem.key_positions, 64);
  hide(problem.v, problem.key_positions, 64);
  const AttentionForward actual = subject.forward(problem, 4);
  expect_equal(subject, actual, expected);
  EXPECT_EQ(actual.lse[1], -kInfinity);
  for (std::int64_t d = 0; d < 2 * 64; ++d) EXPECT_EQ(actual.o[2 * 64 + d], 0.0f);
  hide(problem.dout, problem.query_positions, 2 * 64);
  const AttentionGradients gradients = subject.backward(problem, actual);
  expect_equal(subject, gradients, expected);
  for (std::int64_t d = 0; d < 2 * 64; ++d) EXPECT_EQ(gradients.dq[2 * 64 + d], 0.0f);
}

void expect_nothing_visible_is_zero(const AttentionSubject& subject) {
  AttentionProblem problem(1, 130, 140, 2, 2, 64);
  subject.prepare(problem).key_positions.assign(140, -1);
  const AttentionForward nothing_at_all = subject.forward(problem);
  EXPECT_EQ(nothing_at_all.o, Floats(nothing_at_all.o.size(), 0.0f));
  EXPECT_EQ(nothing_at_all.lse, Floats(nothing_at_all.lse.size(), -kInfinity));
  EXPECT_EQ(subject.backward(problem, nothing_at_all).dq, Floats(nothing_at_all.o.size(), 0.0f));
  // Merging nothing into something, something into nothing, and nothing into nothing.
  AttentionProblem visible(1, 130, 140, 2, 2, 64, kFull);
  const AttentionForward something = subject.forward(subject.prepare(visible));
  const AttentionForward first = subject.forward(visible, 0, nullptr, true);
  const AttentionForward kept = subject.forward(problem, 0, &first);
  EXPECT_EQ(kept.o, something.o);
  EXPECT_EQ(kept.lse, something.lse);
  const AttentionForward nothing = subject.forward(problem, 0, nullptr, true);
  const AttentionForward started = subject.forward(visible, 0, &nothing);
  EXPECT_EQ(started.o, something.o);
  EXPECT_EQ(started.lse, something.lse);
  const AttentionForward still_nothing = subject.forward(problem, 0, &nothing);
  EXPECT_EQ(still_nothing.o, nothing_at_all.o);
  EXPECT_EQ(still_nothing.lse, nothing_at_all.lse);
}

void expect_no_keys_and_no_queries(const AttentionSubject& subject, std::int64_t head_size) {
  AttentionProblem no_keys(1, 10, 0, 1, 1, head_size);
  const AttentionForward actual = subject.forward(subject.prepare(no_keys));
  EXPECT_EQ(actual.o, Floats(10 * head_size, 0.0f));
  EXPECT_EQ(actual.lse, Floats(10, -kInfinity));
  EXPECT_EQ(subject.backward(no_keys, actual).dq, Floats(10 * head_size, 0.0f));
  AttentionProblem no_queries(1, 0, 10, 1, 1, head_size);
  EXPECT_EQ(subject.backward(subject.prepare(no_queries), subject.forward(no_queries)).dk,
            Floats(10 * head_size, 0.0f));
}

void expect_huge_logits_stay_finite(const AttentionSubject& subject, std::int64_t head_size,
                                    bool keys_differ) {
  AttentionProblem problem(1, 150, 200, 1, 1, head_size, kFull);
  subject.prepare(problem).shape.scale = 1.0f;
  std::fill(problem.q.begin(), problem.q.end(), 0.0f);
  std::fill(problem.k.begin(), problem.k.end(), 0.0f);
  const auto fraction = [](std::int64_t i) { return static_cast<float>(i % 8) / 128.0f; };
  for (std::int64_t i = 0; i < 150; ++i) {
    problem.q[i * head_size] = i % 3 == 0 ? 100.0f : -100.0f;
    if (!keys_differ) problem.q[i * head_size + 1] = fraction(i);
  }
  for (std::int64_t j = 0; j < 200; ++j) {
    problem.k[j * head_size] = (j % 2 ? 100.0f : -100.0f) + (keys_differ ? fraction(j) : 0.0f);
    if (!keys_differ) problem.k[j * head_size + 1] = 0.5f;
  }
  const AttentionOutputs expected = problem.reference();
  const AttentionForward actual = subject.forward(problem);
  EXPECT_LE(relative_error(actual.o, expected.o), subject.bound());
  // fp32 has 1e-3 between neighbours here.
  EXPECT_LE(largest_error(actual.lse, expected.lse), 2e-3);
  if (keys_differ) {
    const AttentionGradients gradients = subject.backward(problem, actual);
    // And the stored lse moves every p of a row by as much; in dq the keys' common part of 100 then
    // fails to cancel.
    EXPECT_LE(relative_error(gradients.dv, expected.dv), 1e-3);
    EXPECT_LE(relative_error(gradients.dq, expected.dq), 2e-2);
  }
  // Blocks whose maxima lie 2e4 apart.
  Ints low, high;
  for (std::int32_t j = 0; j < 200; ++j) (j % 2 ? high : low).push_back(j);
  for (const bool high_first : {false, true}) {
    AttentionProblem first = problem.slice(counting(150), high_first ? high : low);
    AttentionProblem second = problem.slice(counting(150), high_first ? low : high);
    for (AttentionProblem* part : {&first, &second}) subject.prepare(*part).shape.scale = 1.0f;
    const AttentionForward start = subject.forward(first, 0, nullptr, true);
    const AttentionForward merged = subject.forward(second, 0, &start);
    EXPECT_LE(relative_error(merged.o, expected.o), subject.bound());
    EXPECT_LE(largest_error(merged.lse, expected.lse), 2e-3);
  }
}

void expect_nan_is_not_hidden(const AttentionSubject& subject, std::int64_t head_size) {
  AttentionProblem problem(1, 120, 120, 1, 1, head_size);
  subject.prepare(problem).q[50 * head_size + 3] = kNan;
  const Floats o = subject.forward(problem).o;
  for (std::int64_t i = 0; i < 120; ++i)
    EXPECT_EQ(std::isnan(o[i * head_size]), i == 50) << "query " << i;
  AttentionProblem with_key(1, 120, 120, 1, 1, head_size);
  subject.prepare(with_key).k[70 * head_size] = kNan;
  const Floats o_key = subject.forward(with_key).o;
  for (std::int64_t i = 0; i < 120; ++i)
    EXPECT_EQ(std::isnan(o_key[i * head_size]), i >= 70) << "query " << i;
  // Nor do blocks of keys that come after it hide it.
  AttentionProblem part = problem.slice(counting(120), counting(60));
  part.shape.bf16_operands = subject.bf16;  // values as they are: rounding could lose a NaN
  const AttentionForward start = subject.forward(part, 0, nullptr, true);
  part = problem.slice(counting(120), counting(60, 60));
  part.shape.bf16_operands = subject.bf16;
  const Floats o_merged = subject.forward(part, 0, &start).o;
  for (std::int64_t i = 0; i < 120; ++i)
    EXPECT_EQ(std::isnan(o_merged[i * head_size]), i == 50) << "query " << i;
}

void expect_gradients_accumulate(const AttentionSubject& subject) {
  AttentionProblem problem(1, 150, 150, 2, 1, 64);
  const AttentionForward saved = subject.forward(subject.prepare(problem));
  const AttentionGradients from_zero = subject.backward(problem, saved),
                           from_ten = subject.backward(problem, saved, 4, 10.0f);
  const auto expect_shifted = [](const Floats& plain, const Floats& shifted) {
    for (std::size_t i = 0; i < plain.size(); ++i)
      ASSERT_NEAR(plain[i] + 10.0f, shifted[i], 4e-6) << i;
  };
  expect_shifted(from_zero.dq, from_ten.dq);
  expect_shifted(from_zero.dk, from_ten.dk);
  expect_shifted(from_zero.dv, from_ten.dv);
}

}  // namespace longspan::testing_support
