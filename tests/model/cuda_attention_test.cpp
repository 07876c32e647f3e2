// The CUDA attention kernels, in the emulator or on a GPU, against the dense oracle in double:
// exact fp32 to 2e-6, bf16 products to 4e-3 of inputs that are bf16 already, log-sum-exp to 1e-5.
// label: slow
// timeout: 120
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>

#include "parallel/error.hpp"
#include "support/attention_cases.hpp"
#include "support/attention_runner.hpp"

namespace longspan {
namespace {

using namespace testing_support;

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

AttentionSubject subject_in(bool bf16) {
  return {runner(), bf16};
}

class CudaAttention : public OnCuda, public testing::WithParamInterface<AttentionVariant> {};

TEST_P(CudaAttention, EqualsTheOracle) {
  const std::int64_t head_size = GetParam().head_size;
  for (const bool bf16 : {false, true}) {
    // Other head sizes are computed exactly, asked for bf16 or not: one of them shows it.
    if (bf16 && head_size != 64 && head_size != 128 && head_size != 80) continue;
    SCOPED_TRACE(bf16 ? "bf16" : "fp32");
    AttentionProblem problem = GetParam().problem();
    expect_equal_to_oracle(subject_in(bf16), problem, 12);
  }
}
INSTANTIATE_TEST_SUITE_P(Variants, CudaAttention, testing::ValuesIn(attention_variants()),
                         [](const auto& tested) { return tested.param.name; });

class CudaAttentionForms : public OnCuda, public testing::WithParamInterface<bool> {
 protected:
  static AttentionSubject subject() { return subject_in(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Forms, CudaAttentionForms, testing::Bool(),
                         [](const auto& tested) { return tested.param ? "bf16" : "fp32"; });

TEST_P(CudaAttentionForms, FollowPositionsNotIndices) {
  expect_positions_not_indices(subject(), 64);
}
TEST_P(CudaAttentionForms, MergeBlocksOfKeysInAnyOrder) {
  expect_blocks_merge_in_any_order(subject(), 64, 140, {100, 7, 223});
}
TEST_P(CudaAttentionForms, ServeZigzagShards) {
  expect_zigzag_shards_equal_dense(subject(), {2, 54, 1, 2, 1, true});
}
/// On a GPU with cuDNN its blocks serve these.
TEST_P(CudaAttentionForms, ServeKnownRuns) {
  expect_known_runs_change_nothing(subject(), on_gpu() ? 256 : 40);
}
TEST_P(CudaAttentionForms, ServeKnownRunsBehindAWindow) {
  expect_known_runs_change_nothing(subject(), on_gpu() ? 256 : 40, on_gpu() ? 300 : 50);
}
TEST_P(CudaAttentionForms, LeaveRowsThatSeeNothingZeroAndNeverShowPadding) {
  expect_padding_is_never_read(subject());
}
TEST_P(CudaAttentionForms, SeeNothingAtAll) {
  expect_nothing_visible_is_zero(subject());
}
TEST_P(CudaAttentionForms, TakeNoKeysAndNoQueries) {
  expect_no_keys_and_no_queries(subject(), 64);
}
TEST_P(CudaAttentionForms, ShowNaNOfAQueryOrKey) {
  expect_nan_is_not_hidden(subject(), 64);
}
TEST_P(CudaAttentionForms, KeepHugeLogitsFinite) {
  expect_huge_logits_stay_finite(subject(), 64, false);
}
TEST_P(CudaAttentionForms, AccumulateGradients) {
  expect_gradients_accumulate(subject());
}

using CudaAttentionOptions = OnCuda;
using CudaAttentionContract = OnCuda;

/// The difference between the forms is there: bf16 is not fp32 in disguise, nor the other way.
TEST_F(CudaAttentionOptions, FormsDiffer) {
  AttentionProblem problem(1, 64, 64, 1, 1, 64);
  subject_in(true).prepare(problem);
  const AttentionOutputs expected = problem.reference();
  EXPECT_GT(relative_error(attention_forward(problem, 0, nullptr, false, runner()).o, expected.o),
            1e-4);
  problem.shape.bf16_operands = false;
  EXPECT_LE(relative_error(attention_forward(problem, 0, nullptr, false, runner()).o, expected.o),
            2e-6);
}

TEST_F(CudaAttentionContract, RefusesWhatIsOutsideOfIt) {
  const AttentionSubject subject = subject_in(false);
  AttentionProblem odd_size(1, 4, 4, 1, 1, 18);
  EXPECT_THROW(subject.forward(odd_size), Error);
  AttentionProblem uneven_heads(1, 4, 4, 3, 2, 16);
  EXPECT_THROW(subject.forward(uneven_heads), Error);
  AttentionProblem unaligned(1, 4, 4, 1, 1, 16);
  try {
    subject.forward(unaligned, 3);
    ADD_FAILURE() << "rows of 19 floats were taken";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("q is not aligned to 16 bytes"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace longspan
