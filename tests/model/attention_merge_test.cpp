// The error of attention may not grow with the number of ranks: keys and queries are cut into
// shards, every shard of queries meets the blocks of keys in the order of a ring, and gradients of
// keys are added up rank after rank. Bound: 1.5 x the error of one call over all keys, both against
// the dense oracle in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "support/attention_problem.hpp"
#include "support/attention_reference.hpp"

namespace longspan {
namespace {

using model::AttentionMask;
using testing_support::attention_backward;
using testing_support::attention_forward;
using testing_support::AttentionForward;
using testing_support::AttentionGradients;
using testing_support::AttentionOutputs;
using testing_support::AttentionProblem;
using testing_support::largest_error;
using testing_support::relative_error;

using Floats = std::vector<float>;
using Ints = std::vector<std::int32_t>;

constexpr double kTimesOneCall = 1.5, kRelative = 2e-6, kAbsoluteLse = 1e-5;

struct Results {
  Floats o, lse, dq, dk, dv;
};

/// What happens to a rank's partial results before the next block of keys.
using Between = std::function<void(const AttentionProblem&, AttentionForward&)>;
void nothing(const AttentionProblem&, AttentionForward&) {}

/// Finishes after every block: o is divided by the sum, and the log-sum-exp rounded to fp32 is all
/// that is left of maximum and sum.
void finish(const AttentionProblem& part, AttentionForward& state) {
  const auto& shape = part.shape;
  for (std::int64_t row = 0; row < shape.batch * shape.heads * shape.queries; ++row) {
    float &m = state.lse[row], &l = state.sum[row];
    if (l == 0.0f) continue;
    const std::int64_t query = row % shape.queries, head = row / shape.queries % shape.heads,
                       batch = row / shape.queries / shape.heads;
    float* const o =
        &state.o[((batch * shape.queries + query) * shape.heads + head) * shape.head_size];
    for (std::int64_t d = 0; d < shape.head_size; ++d) o[d] *= 1.0f / l;
    const float lse = (m + std::log2(l)) * 0.693147181f;
    m = lse * 1.44269504f, l = 1.0f;
  }
}

/// `from` holds the rows of the tokens given, of every sequence: adds them to the whole.
void add_rows(const AttentionProblem& whole, const Ints& tokens, std::int64_t width,
              const Floats& from, Floats& to) {
  const std::int64_t all = whole.shape.queries;
  std::size_t at = 0;
  for (std::int64_t b = 0; b < whole.shape.batch; ++b)
    for (const std::int32_t token : tokens)
      for (std::int64_t d = 0; d < width; ++d) to[(b * all + token) * width + d] += from[at++];
}

/// Shard r: chunks r and 2 * shards - 1 - r, as ranks hold them.
std::vector<Ints> zigzag(std::int64_t tokens, int shards) {
  std::vector<Ints> all(shards);
  for (int chunk = 0; chunk < 2 * shards; ++chunk)
    for (std::int64_t t = tokens * chunk / (2 * shards); t < tokens * (chunk + 1) / (2 * shards);
         ++t)
      all[std::min(chunk, 2 * shards - 1 - chunk)].push_back(static_cast<std::int32_t>(t));
  return all;
}

Results on_ranks(const AttentionProblem& whole, int ranks, const Between& between = nothing) {
  const auto& shape = whole.shape;
  const std::int64_t width = shape.heads * shape.head_size,
                     kv_width = shape.kv_heads * shape.head_size;
  const std::vector<Ints> shards = zigzag(shape.queries, ranks);
  Results all{Floats(whole.q.size()), Floats(shape.batch * shape.heads * shape.queries),
              Floats(whole.q.size()), Floats(whole.k.size()), Floats(whole.k.size())};
  for (int r = 0; r < ranks; ++r) {
    const auto part = [&](int step) {
      return whole.slice(shards[r], shards[(r - step + ranks) % ranks]);
    };
    AttentionForward state;
    for (int step = 0; step < ranks; ++step) {
      const bool last = step + 1 == ranks;
      AttentionProblem now = part(step);
      state = attention_forward(now, 0, step == 0 ? nullptr : &state, !last);
      if (!last) between(now, state);
    }
    add_rows(whole, shards[r], width, state.o, all.o);
    const std::int64_t local = static_cast<std::int64_t>(shards[r].size());
    for (std::int64_t row = 0; row < shape.batch * shape.heads; ++row)
      for (std::int64_t i = 0; i < local; ++i)
        all.lse[row * shape.queries + shards[r][i]] = state.lse[row * local + i];
    for (int step = 0; step < ranks; ++step) {
      AttentionProblem now = part(step);
      const AttentionGradients gradients = attention_backward(now, state);
      const Ints& keys = shards[(r - step + ranks) % ranks];
      add_rows(whole, shards[r], width, gradients.dq, all.dq);
      add_rows(whole, keys, kv_width, gradients.dk, all.dk);
      add_rows(whole, keys, kv_width, gradients.dv, all.dv);
    }
  }
  return all;
}

struct Errors {
  double o, dq, dk, dv, lse;
};
Errors compare(const Results& actual, const AttentionOutputs& truth) {
  return {relative_error(actual.o, truth.o), relative_error(actual.dq, truth.dq),
          relative_error(actual.dk, truth.dk), relative_error(actual.dv, truth.dv),
          largest_error(actual.lse, truth.lse)};
}

Errors one_call(AttentionProblem whole, const AttentionOutputs& truth) {
  const AttentionForward forward = attention_forward(whole);
  const AttentionGradients gradients = attention_backward(whole, forward);
  return compare({forward.o, forward.lse, gradients.dq, gradients.dk, gradients.dv}, truth);
}

/// Short sequences many times: the errors of a few numbers are luck, and so is their ratio.
struct Length {
  std::int64_t sequences, tokens;
};
class AttentionMerge : public testing::TestWithParam<Length> {
 protected:
  AttentionProblem problem(AttentionMask mask) const {
    return AttentionProblem(GetParam().sequences, GetParam().tokens, GetParam().tokens, 4, 2, 16,
                            mask);
  }
};

TEST_P(AttentionMerge, ErrorsDoNotGrowWithTheNumberOfBlocks) {
  for (const AttentionMask mask : {AttentionMask{false, 0}, AttentionMask{true, 0}}) {
    AttentionProblem whole = problem(mask);
    const AttentionOutputs truth = whole.reference();
    const Errors one = one_call(whole, truth);
    for (const int ranks : {2, 7, 8, 16}) {
      SCOPED_TRACE(std::to_string(ranks) + " ranks, causal " + std::to_string(mask.causal));
      const Errors many = compare(on_ranks(whole, ranks), truth);
      for (double Errors::*part : {&Errors::o, &Errors::dq, &Errors::dk, &Errors::dv})
        EXPECT_LE(many.*part, std::min(kRelative, kTimesOneCall * one.*part));
      EXPECT_LE(many.lse, kAbsoluteLse);
    }
  }
}

/// The bound has teeth: partial results that are finished after every block break it.
TEST_P(AttentionMerge, RoundingTheLogSumExpAfterEveryBlockBreaksTheBound) {
  AttentionProblem whole = problem({false, 0});
  const AttentionOutputs truth = whole.reference();
  const Errors one = one_call(whole, truth), many = compare(on_ranks(whole, 8, finish), truth);
  EXPECT_GT(many.dv, kTimesOneCall * one.dv);
  EXPECT_LE(many.dv, kRelative);  // which the other bound does not see
}

INSTANTIATE_TEST_SUITE_P(Lengths, AttentionMerge,
                         testing::Values(Length{25, 8}, Length{4, 49}, Length{1, 193}),
                         [](const auto& tested) { return std::to_string(tested.param.tokens); });

}  // namespace
}  // namespace longspan
