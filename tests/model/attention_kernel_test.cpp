// The attention kernel against the dense oracle in double, exact and of bfloat16 operands, which
// run on AMX where that is. Bounds: notes/long-sequences.md 9.3.
#include <gtest/gtest.h>
#include <hwy/targets.h>
#include <omp.h>

#include <numeric>
#include <vector>

#include "model/kernels/cpu/attention.hpp"
#include "model/kernels/cpu/attention_amx.hpp"
#include "model/kernels/cpu/instruction_set.hpp"
#include "parallel/error.hpp"
#include "support/attention_cases.hpp"
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
using testing_support::AttentionSubject;
using testing_support::AttentionVariant;

using Floats = std::vector<float>;

AttentionSubject subject_in(bool bf16) {
  return {testing_support::cpu_attention(), bf16};
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

class AttentionKernelVariants : public testing::TestWithParam<AttentionVariant> {};

TEST_P(AttentionKernelVariants, EqualTheOracle) {
  for (const bool bf16 : {false, true}) {
    SCOPED_TRACE(bf16 ? "bf16" : "fp32");
    AttentionProblem problem = GetParam().problem();
    expect_equal_to_oracle(subject_in(bf16), problem, 12);
  }
}
INSTANTIATE_TEST_SUITE_P(Variants, AttentionKernelVariants,
                         testing::ValuesIn(testing_support::attention_variants()),
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
      expect_equal_to_oracle(subject_in(false), problem.with_documents());
    }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

class AttentionKernelForms : public testing::TestWithParam<bool> {
 protected:
  static AttentionSubject subject() { return subject_in(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Forms, AttentionKernelForms, testing::Bool(),
                         [](const auto& tested) { return tested.param ? "bf16" : "fp32"; });

TEST_P(AttentionKernelForms, FollowsPositionsNotIndices) {
  testing_support::expect_positions_not_indices(subject(), 32);
}
TEST_P(AttentionKernelForms, MergesBlocksOfKeysInAnyOrder) {
  testing_support::expect_blocks_merge_in_any_order(subject(), 32, 210, {100, 7, 150, 73});
}
TEST_P(AttentionKernelForms, ZigzagShardsEqualDenseForwardAndBackward) {
  for (const bool documents : {false, true})
    testing_support::expect_zigzag_shards_equal_dense(subject(), {3, 56, 2, 4, 2, documents});
}
TEST_P(AttentionKernelForms, KnownRunsChangeNothing) {
  for (const std::int64_t window : {0, 50})
    testing_support::expect_known_runs_change_nothing(subject(), 40, window);
}
TEST_P(AttentionKernelForms, RowsThatSeeNothingAreZeroAndPaddingIsNeverRead) {
  testing_support::expect_padding_is_never_read(subject());
}
TEST_P(AttentionKernelForms, NothingVisibleAtAll) {
  testing_support::expect_nothing_visible_is_zero(subject());
}
TEST_P(AttentionKernelForms, NoKeysAndNoQueries) {
  testing_support::expect_no_keys_and_no_queries(subject(), 16);
}
TEST_P(AttentionKernelForms, HugeLogitsNeitherOverflowNorVanish) {
  testing_support::expect_huge_logits_stay_finite(subject(), 16, !GetParam());
}
TEST_P(AttentionKernelForms, NanInAQueryOrKeyIsNotHidden) {
  testing_support::expect_nan_is_not_hidden(subject(), 16);
}
TEST_P(AttentionKernelForms, GradientsAccumulate) {
  testing_support::expect_gradients_accumulate(subject());
}

TEST_P(AttentionKernelForms, SameBitsOnEveryRunAndThreadCount) {
  AttentionProblem problem(1, 1300, 1300, 2, 1, 16);
  subject().prepare(problem);
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

/// The difference between the forms is there where AMX is, and only there.
TEST(AttentionKernel, FormsDifferWhereAmxIsUsed) {
  AttentionProblem problem(1, 64, 64, 1, 1, 64);
  subject_in(true).prepare(problem);
  const AttentionOutputs expected = problem.reference();
  const auto error = [&] {
    return testing_support::relative_error(attention_forward(problem).o, expected.o);
  };
  if (model::cpu::amx_works())
    EXPECT_GT(error(), 1e-4);
  else
    EXPECT_LE(error(), 2e-6);
  model::cpu::use_amx(false);
  EXPECT_LE(error(), 2e-6);
  model::cpu::use_amx(true);
  problem.shape.bf16_operands = false;
  EXPECT_LE(error(), 2e-6);
}

/// The middle queries of the second block do not see keys that those around them see, and that the
/// middle of the first block has seen.
TEST_P(AttentionKernelForms, HiddenBetweenVisibleQueries) {
  AttentionProblem problem(1, 192, 192, 2, 1, 32, {.causal = false});
  problem.with_documents();
  for (std::int64_t i = 0; i < 192; ++i) {
    problem.query_documents[i] = i < 96 ? i >= 66 : i >= 126 && i < 162;
    problem.key_documents[i] = i >= 32;
  }
  expect_equal_to_oracle(subject(), problem);
}

TEST(AttentionKernel, NegativeAndZeroScaleInBf16) {
  for (const float scale : {-0.3f, 0.0f}) {
    AttentionProblem problem(1, 120, 130, 2, 1, 24, {.causal = true, .window = 60});
    problem.shape.scale = scale;
    subject_in(true).prepare(problem);
    const AttentionOutputs expected = problem.reference();
    const AttentionForward actual = attention_forward(problem);
    expect_equal(subject_in(true), actual, expected);
    // Without a scale the scores do not matter, and dq and dk are 0.
    expect_equal(subject_in(true), attention_backward(problem, actual), expected,
                 scale == 0.0f ? 1.0 : 0.0);
  }
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
  for (const AttentionMask mask : {AttentionMask{true, 0}, AttentionMask{false, 0},
                                   AttentionMask{true, 20}, AttentionMask{false, 20}}) {
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
