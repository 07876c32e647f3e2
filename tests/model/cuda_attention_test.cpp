// The CUDA attention kernels, in the emulator or on a GPU, against the dense oracle in double:
// exact fp32 to 2e-6, bf16 products to 4e-3 of inputs that are bf16 already, log-sum-exp to 1e-5.
// label: slow
// timeout: 120
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/error.hpp"
#include "support/attention_runner.hpp"

namespace longspan {
namespace {

using model::AttentionMask;
using namespace testing_support;
using Floats = std::vector<float>;
using Ints = std::vector<std::int32_t>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kAbsoluteLse = 1e-5;

bool on_gpu() {
  const char* const device = std::getenv("LONGSPAN_TEST_DEVICE");
  return device != nullptr && std::string_view(device) == "cuda";
}

const std::optional<model::Backend>& backend() {
  static std::string why;
  static const std::optional<model::Backend> backend = cuda_backend(why);
  if (!backend) std::cerr << "no GPU for these tests: " << why << '\n';
  return backend;
}

DeviceAttentionRunner& runner() {
  static DeviceAttentionRunner runner(*backend());
  return runner;
}

class OnCuda : public testing::Test {
 protected:
  void SetUp() override {
    if (!backend()) GTEST_SKIP() << "no GPU";
  }
};

enum class Form { kFp32, kBf16 };
double bound(Form form) {
  return form == Form::kFp32 ? 2e-6 : 4e-3;
}

/// With Form::kBf16 the inputs become bf16 values.
AttentionProblem& in_form(Form form, AttentionProblem& problem) {
  problem.shape.bf16_operands = form == Form::kBf16;
  if (form == Form::kFp32) return problem;
  for (Floats* x : {&problem.q, &problem.k, &problem.v, &problem.dout})
    for (float& number : *x) {
      std::uint32_t bits;
      std::memcpy(&bits, &number, 4);
      bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
      std::memcpy(&number, &bits, 4);
    }
  return problem;
}

AttentionForward forward(AttentionProblem& problem, std::int64_t gap = 0,
                         const AttentionForward* merged = nullptr, bool more = false) {
  return attention_forward(problem, gap, merged, more, runner());
}
AttentionGradients backward(AttentionProblem& problem, const AttentionForward& saved,
                            std::int64_t gap = 0, float start = 0.0f) {
  return attention_backward(problem, saved, gap, start, runner());
}

void expect_equal(const AttentionForward& actual, const AttentionOutputs& expected, Form form) {
  EXPECT_LE(relative_error(actual.o, expected.o), bound(form));
  EXPECT_LE(largest_error(actual.lse, expected.lse), kAbsoluteLse);
}
void expect_equal(const AttentionGradients& actual, const AttentionOutputs& expected, Form form,
                  double floor = 0.0) {
  EXPECT_LE(relative_error(actual.dq, expected.dq, floor), bound(form));
  EXPECT_LE(relative_error(actual.dk, expected.dk, floor), bound(form));
  EXPECT_LE(relative_error(actual.dv, expected.dv), bound(form));
}

void expect_equal_to_oracle(AttentionProblem& problem, Form form, std::int64_t gap = 0) {
  const AttentionOutputs expected = in_form(form, problem).reference();
  const AttentionForward actual = forward(problem, gap);
  expect_equal(actual, expected, form);
  EXPECT_TRUE(actual.gaps_are_untouched);
  const AttentionGradients gradients = backward(problem, actual, gap);
  // One visible key has probability 1 whatever its score: dq and dk are 0, and only the absolute
  // error has a meaning.
  const bool scores_matter = problem.shape.keys > 1 && problem.shape.mask.window != 1;
  const double floor = scores_matter ? 0.0 : std::sqrt(static_cast<double>(gradients.dq.size()));
  expect_equal(gradients, expected, form, floor);
  EXPECT_TRUE(gradients.gaps_are_untouched);
}

struct Variant {
  std::string name;
  std::int64_t batch, queries, keys, heads, kv_heads, head_size;
  AttentionMask mask;
  bool documents = false;
};

void PrintTo(const Variant& variant, std::ostream* out) {
  *out << variant.name;
}

class CudaAttention : public OnCuda, public testing::WithParamInterface<Variant> {};

TEST_P(CudaAttention, EqualsTheOracle) {
  const Variant& t = GetParam();
  for (const Form form : {Form::kFp32, Form::kBf16}) {
    // Other head sizes are computed exactly, asked for bf16 or not: one of them shows it.
    if (form == Form::kBf16 && t.head_size != 64 && t.head_size != 128 && t.head_size != 80)
      continue;
    SCOPED_TRACE(form == Form::kFp32 ? "fp32" : "bf16");
    AttentionProblem problem(t.batch, t.queries, t.keys, t.heads, t.kv_heads, t.head_size, t.mask);
    if (t.documents) problem.with_documents();
    expect_equal_to_oracle(problem, form, 12);
  }
}

constexpr AttentionMask kCausal{true, 0}, kFull{false, 0};
INSTANTIATE_TEST_SUITE_P(
    Variants, CudaAttention,
    testing::Values(
        Variant{"causal", 1, 256, 256, 2, 2, 64, kCausal},
        Variant{"full", 1, 192, 192, 2, 2, 64, kFull},
        Variant{"causal_window", 1, 300, 300, 1, 1, 64, {true, 70}},
        Variant{"full_window", 2, 211, 211, 1, 1, 64, {false, 33}},
        Variant{"window_of_one", 1, 130, 130, 1, 1, 64, {true, 1}},
        Variant{"window_beyond_32_bits", 1, 70, 70, 1, 1, 64, {false, std::int64_t{1} << 40}},
        Variant{"documents", 2, 197, 197, 2, 1, 64, kCausal, true},
        Variant{"documents_full", 2, 150, 150, 1, 1, 64, kFull, true},
        Variant{"documents_window", 3, 190, 190, 1, 1, 64, {true, 40}, true},
        Variant{"grouped_heads", 1, 90, 100, 8, 2, 64, kCausal},
        Variant{"one_kv_head", 1, 100, 100, 12, 1, 16, kFull},
        Variant{"one_query", 2, 1, 150, 2, 1, 64, kCausal},
        Variant{"one_key", 1, 100, 1, 2, 1, 64, kFull},
        Variant{"one_of_each", 1, 1, 1, 1, 1, 64, kCausal},
        Variant{"few_queries_many_keys", 1, 37, 500, 1, 1, 64, kCausal},
        Variant{"many_queries_few_keys", 1, 500, 61, 1, 1, 64, kFull},
        // More than the 32 tiles that a warp looks at together, most of them hidden.
        Variant{"many_tiles", 1, 1100, 2200, 1, 1, 4, {true, 90}},
        Variant{"many_tiles_in_bf16", 1, 70, 2200, 1, 1, 64, {true, 90}},
        Variant{"many_query_tiles_in_bf16", 1, 2200, 70, 1, 1, 64, {true, 5}},
        Variant{"head_4", 1, 120, 130, 2, 1, 4, kCausal},
        Variant{"head_20", 3, 97, 193, 3, 3, 20, kCausal},
        Variant{"head_80", 1, 120, 140, 2, 1, 80, kCausal},
        Variant{"head_128", 1, 200, 200, 2, 1, 128, kCausal},
        Variant{"head_128_documents", 2, 140, 110, 2, 1, 128, {false, 60}, true},
        Variant{"head_132", 1, 65, 70, 1, 1, 132, kFull},
        Variant{"head_256", 1, 90, 100, 2, 1, 256, kCausal}),
    [](const auto& tested) { return tested.param.name; });

class CudaAttentionForms : public OnCuda, public testing::WithParamInterface<Form> {
 protected:
  Form form() const { return GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Forms, CudaAttentionForms, testing::Values(Form::kFp32, Form::kBf16),
                         [](const auto& tested) {
                           return tested.param == Form::kFp32 ? "fp32" : "bf16";
                         });

/// Positions need not be in order: any permutation of the tokens is the same attention.
TEST_P(CudaAttentionForms, FollowPositionsNotIndices) {
  AttentionProblem problem(1, 180, 220, 2, 1, 64, {.causal = true, .window = 90});
  for (std::int64_t i = 0; i < 180; ++i)
    problem.query_positions[i] = static_cast<std::int32_t>(i * 77 % 180 + 40);
  for (std::int64_t j = 0; j < 220; ++j)
    problem.key_positions[j] = static_cast<std::int32_t>(j * 87 % 220);
  expect_equal_to_oracle(problem.with_documents(), form());
}

TEST_P(CudaAttentionForms, MergeBlocksOfKeysInAnyOrder) {
  AttentionProblem whole(1, 140, 330, 4, 2, 64, {.causal = true, .window = 250});
  whole.with_documents();
  const AttentionOutputs expected = in_form(form(), whole).reference();
  const std::vector<Ints> blocks = {counting(100), counting(7, 100), counting(223, 107)};
  std::vector<int> order = {0, 1, 2};
  do {
    AttentionForward merged;
    for (std::size_t i = 0; i < order.size(); ++i) {
      AttentionProblem part = whole.slice(counting(140), blocks[order[i]]);
      merged = forward(in_form(form(), part), 4, i == 0 ? nullptr : &merged, i + 1 < order.size());
      EXPECT_TRUE(merged.gaps_are_untouched);
    }
    expect_equal(merged, expected, form());
  } while (std::next_permutation(order.begin(), order.end()));
}

/// Rank r of P holds chunks r and 2P-1-r, with some padding behind; blocks of keys pass in ring
/// order, and what a rank does not hold of the keys' gradients is added up.
TEST_P(CudaAttentionForms, ServeZigzagShards) {
  constexpr int kRanks = 2, kTokens = 210, kChunk = 54;  // 6 padding tokens
  AttentionProblem whole(1, kTokens + 6, kTokens + 6, 2, 1, 64);
  for (int i = 0; i < 6; ++i)
    whole.query_positions[kTokens + i] = whole.key_positions[kTokens + i] = -1;
  whole.with_documents();
  const AttentionOutputs expected = in_form(form(), whole).reference();
  std::vector<Ints> shards;
  for (int r = 0; r < kRanks; ++r) {
    Ints own = counting(kChunk, r * kChunk), late = counting(kChunk, (2 * kRanks - 1 - r) * kChunk);
    own.insert(own.end(), late.begin(), late.end());
    shards.push_back(own);
  }
  const std::int64_t width = 2 * 64, kv_width = 64, tokens = kTokens + 6, local = 2 * kChunk;
  AttentionForward o{Floats(tokens * width), Floats(2 * tokens), {}};
  AttentionGradients all{Floats(tokens * width), Floats(tokens * kv_width),
                         Floats(tokens * kv_width)};
  const auto scatter_add = [&](const Floats& from, std::int64_t row, const Ints& to_tokens,
                               Floats& to) {
    for (std::int64_t i = 0; i < local; ++i)
      for (std::int64_t d = 0; d < row; ++d) to[to_tokens[i] * row + d] += from[i * row + d];
  };
  for (int r = 0; r < kRanks; ++r) {
    AttentionForward merged;
    for (int step = 0; step < kRanks; ++step) {
      AttentionProblem part = whole.slice(shards[r], shards[(r + step) % kRanks]);
      merged = forward(in_form(form(), part), 0, step == 0 ? nullptr : &merged, step + 1 < kRanks);
    }
    scatter_add(merged.o, width, shards[r], o.o);
    for (std::int64_t head = 0; head < 2; ++head)
      for (std::int64_t i = 0; i < local; ++i)
        o.lse[head * tokens + shards[r][i]] = merged.lse[head * local + i];
    for (int step = 0; step < kRanks; ++step) {
      const Ints& keys = shards[(r + step) % kRanks];
      AttentionProblem part = whole.slice(shards[r], keys);
      const AttentionGradients gradients = backward(in_form(form(), part), merged);
      scatter_add(gradients.dq, width, shards[r], all.dq);
      scatter_add(gradients.dk, kv_width, keys, all.dk);
      scatter_add(gradients.dv, kv_width, keys, all.dv);
    }
  }
  expect_equal(o, expected, form());
  expect_equal(all, expected, form());
}

/// Positions known on the host: on a GPU with cuDNN its blocks serve these.
TEST_P(CudaAttentionForms, ServeKnownRuns) {
  const int kRanks = 2, kChunk = on_gpu() ? 256 : 40, kTokens = 2 * kRanks * kChunk;
  AttentionProblem whole(1, kTokens, kTokens, 4, 2, 64);
  const AttentionOutputs expected = in_form(form(), whole).reference();
  whole.shape.query_runs = whole.shape.key_runs = {1, {{0, kTokens}, {}}};
  const AttentionForward once = forward(whole);
  expect_equal(once, expected, form());
  expect_equal(backward(whole, once), expected, form());
  // The late chunk and the early one of the last rank, against all shards.
  const auto tokens = [&](int rank) {
    Ints all = counting(kChunk, rank * kChunk),
         late = counting(kChunk, (2 * kRanks - 1 - rank) * kChunk);
    all.insert(all.end(), late.begin(), late.end());
    return all;
  };
  const auto runs = [&](int rank) {
    return model::PositionRuns{
        2, {{rank * kChunk, kChunk}, {(2 * kRanks - 1 - rank) * kChunk, kChunk}}};
  };
  AttentionForward merged;
  Floats dq(2 * kChunk * 4 * 64);
  std::vector<AttentionProblem> parts;
  for (int step = 0; step < kRanks; ++step) {
    parts.push_back(whole.slice(tokens(1), tokens((1 + step) % kRanks)));
    in_form(form(), parts.back()).shape.query_runs = runs(1);
    parts.back().shape.key_runs = runs((1 + step) % kRanks);
    merged = forward(parts.back(), 0, step == 0 ? nullptr : &merged, step + 1 < kRanks);
  }
  for (AttentionProblem& part : parts) {
    const Floats share = backward(part, merged).dq;
    for (std::size_t i = 0; i < dq.size(); ++i) dq[i] += share[i];
  }
  std::vector<double> expected_o, expected_dq;
  for (const std::int32_t token : tokens(1))
    for (int d = 0; d < 4 * 64; ++d) {
      expected_o.push_back(expected.o[token * 4 * 64 + d]);
      expected_dq.push_back(expected.dq[token * 4 * 64 + d]);
    }
  EXPECT_LE(relative_error(merged.o, expected_o), bound(form()));
  EXPECT_LE(relative_error(dq, expected_dq), bound(form()));
}

/// Some rows see nothing, and what stands at padding is NaN: neither may show anywhere.
TEST_P(CudaAttentionForms, LeaveRowsThatSeeNothingZeroAndNeverShowPadding) {
  AttentionProblem problem(2, 230, 260, 2, 1, 64);
  for (std::int64_t i = 0; i < 230; ++i)
    if (i % 5 == 0 || (i >= 96 && i < 200)) problem.query_positions[i] = -1;
  for (std::int64_t j = 0; j < 260; ++j)
    if (j < 33 || j % 7 == 0) problem.key_positions[j] = -1;
  problem.query_positions[1] = 20;  // every key it could see is padding
  const AttentionOutputs expected = in_form(form(), problem).reference();
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
  const AttentionForward actual = forward(problem, 4);
  expect_equal(actual, expected, form());
  EXPECT_EQ(actual.lse[1], -kInfinity);
  for (std::int64_t d = 0; d < 2 * 64; ++d) EXPECT_EQ(actual.o[2 * 64 + d], 0.0f);
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t i = 0; i < 230; ++i)
      if (problem.query_positions[i] < 0)
        std::fill_n(problem.dout.begin() + (b * 230 + i) * 2 * 64, 2 * 64, kNan);
  const AttentionGradients gradients = backward(problem, actual);
  expect_equal(gradients, expected, form());
  for (std::int64_t d = 0; d < 2 * 64; ++d) EXPECT_EQ(gradients.dq[2 * 64 + d], 0.0f);
}

TEST_P(CudaAttentionForms, SeeNothingAtAll) {
  AttentionProblem problem(1, 130, 140, 2, 2, 64);
  in_form(form(), problem).key_positions.assign(140, -1);
  const AttentionForward nothing_at_all = forward(problem);
  EXPECT_EQ(nothing_at_all.o, Floats(nothing_at_all.o.size(), 0.0f));
  EXPECT_EQ(nothing_at_all.lse, Floats(nothing_at_all.lse.size(), -kInfinity));
  EXPECT_EQ(backward(problem, nothing_at_all).dq, Floats(nothing_at_all.o.size(), 0.0f));
  // Merging nothing into something, something into nothing, and nothing into nothing.
  AttentionProblem visible(1, 130, 140, 2, 2, 64, kFull);
  const AttentionForward something = forward(in_form(form(), visible));
  const AttentionForward first = forward(visible, 0, nullptr, true);
  const AttentionForward kept = forward(problem, 0, &first);
  EXPECT_EQ(kept.o, something.o);
  EXPECT_EQ(kept.lse, something.lse);
  const AttentionForward nothing = forward(problem, 0, nullptr, true);
  const AttentionForward started = forward(visible, 0, &nothing);
  EXPECT_EQ(started.o, something.o);
  EXPECT_EQ(started.lse, something.lse);
  const AttentionForward still_nothing = forward(problem, 0, &nothing);
  EXPECT_EQ(still_nothing.o, nothing_at_all.o);
  EXPECT_EQ(still_nothing.lse, nothing_at_all.lse);
}

TEST_P(CudaAttentionForms, TakeNoKeysAndNoQueries) {
  AttentionProblem no_keys(1, 10, 0, 1, 1, 64);
  const AttentionForward actual = forward(in_form(form(), no_keys));
  EXPECT_EQ(actual.o, Floats(10 * 64, 0.0f));
  EXPECT_EQ(actual.lse, Floats(10, -kInfinity));
  EXPECT_EQ(backward(no_keys, actual).dq, Floats(10 * 64, 0.0f));
  AttentionProblem no_queries(1, 0, 10, 1, 1, 64);
  EXPECT_EQ(backward(in_form(form(), no_queries), forward(no_queries)).dk, Floats(10 * 64, 0.0f));
}

TEST_P(CudaAttentionForms, ShowNaNOfAQueryOrKey) {
  AttentionProblem problem(1, 120, 120, 1, 1, 64);
  in_form(form(), problem).q[50 * 64 + 3] = kNan;
  const Floats o = forward(problem).o;
  for (std::int64_t i = 0; i < 120; ++i) EXPECT_EQ(std::isnan(o[i * 64]), i == 50) << "query " << i;
  AttentionProblem with_key(1, 120, 120, 1, 1, 64);
  in_form(form(), with_key).k[70 * 64] = kNan;
  const Floats o_key = forward(with_key).o;
  for (std::int64_t i = 0; i < 120; ++i)
    EXPECT_EQ(std::isnan(o_key[i * 64]), i >= 70) << "query " << i;
  // Nor do blocks of keys that come after it hide it.
  AttentionProblem part = problem.slice(counting(120), counting(60));
  part.shape.bf16_operands = problem.shape.bf16_operands;
  const AttentionForward start = forward(part, 0, nullptr, true);
  part = problem.slice(counting(120), counting(60, 60));
  part.shape.bf16_operands = problem.shape.bf16_operands;
  const Floats o_merged = forward(part, 0, &start).o;
  for (std::int64_t i = 0; i < 120; ++i)
    EXPECT_EQ(std::isnan(o_merged[i * 64]), i == 50) << "query " << i;
}

/// Logits of +-1e4 that are exact in bf16 too.
TEST_P(CudaAttentionForms, KeepHugeLogitsFinite) {
  AttentionProblem problem(1, 150, 200, 1, 1, 64, kFull);
  in_form(form(), problem).shape.scale = 1.0f;
  std::fill(problem.q.begin(), problem.q.end(), 0.0f);
  std::fill(problem.k.begin(), problem.k.end(), 0.0f);
  for (std::int64_t i = 0; i < 150; ++i) problem.q[i * 64] = i % 3 == 0 ? 100.0f : -100.0f;
  for (std::int64_t j = 0; j < 200; ++j) {
    problem.k[j * 64] = j % 2 ? 100.0f : -100.0f;
    problem.k[j * 64 + 1] = 0.5f;
  }
  for (std::int64_t i = 0; i < 150; ++i) problem.q[i * 64 + 1] = static_cast<float>(i % 8) / 128.0f;
  const AttentionOutputs expected = problem.reference();
  const AttentionForward actual = forward(problem);
  EXPECT_LE(relative_error(actual.o, expected.o), bound(form()));
  EXPECT_LE(largest_error(actual.lse, expected.lse), 2e-3);  // 1e-3 between neighbours here
}

TEST_P(CudaAttentionForms, AccumulateGradients) {
  AttentionProblem problem(1, 150, 150, 2, 1, 64);
  const AttentionForward saved = forward(in_form(form(), problem));
  const AttentionGradients from_zero = backward(problem, saved),
                           from_ten = backward(problem, saved, 4, 10.0f);
  const auto expect_shifted = [](const Floats& plain, const Floats& shifted) {
    for (std::size_t i = 0; i < plain.size(); ++i)
      ASSERT_NEAR(plain[i] + 10.0f, shifted[i], 4e-6) << i;
  };
  expect_shifted(from_zero.dq, from_ten.dq);
  expect_shifted(from_zero.dk, from_ten.dk);
  expect_shifted(from_zero.dv, from_ten.dv);
}

using CudaAttentionOptions = OnCuda;
using CudaAttentionContract = OnCuda;

/// The difference between the forms is there: bf16 is not fp32 in disguise, nor the other way.
TEST_F(CudaAttentionOptions, FormsDiffer) {
  AttentionProblem problem(1, 64, 64, 1, 1, 64);
  in_form(Form::kBf16, problem);
  const AttentionOutputs expected = problem.reference();
  EXPECT_GT(relative_error(forward(problem).o, expected.o), 1e-4);
  problem.shape.bf16_operands = false;
  EXPECT_LE(relative_error(forward(problem).o, expected.o), 2e-6);
}

TEST_F(CudaAttentionContract, RefusesWhatIsOutsideOfIt) {
  AttentionProblem odd_size(1, 4, 4, 1, 1, 18);
  EXPECT_THROW(forward(odd_size), Error);
  AttentionProblem uneven_heads(1, 4, 4, 3, 2, 16);
  EXPECT_THROW(forward(uneven_heads), Error);
  AttentionProblem unaligned(1, 4, 4, 1, 1, 16);
  try {
    forward(unaligned, 3);
    ADD_FAILURE() << "rows of 19 floats were taken";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("q is not aligned to 16 bytes"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace longspan
