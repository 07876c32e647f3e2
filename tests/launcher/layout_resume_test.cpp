// timeout: 120
/// A checkpoint of two ranks that share all there is to share continues under another split, and on
/// one rank. The whole matrix is in layout_matrix_test.cpp.
#include "tests/launcher/layout_runs.hpp"

namespace longspan {
namespace {

using testing_support::Layout;

class LayoutResume : public testing_support::LayoutRuns {};

TEST_F(LayoutResume, AnotherSplitAndOneRankGoOnAlike) {
  constexpr int kSteps = 6;
  ASSERT_EQ(train("one", {1, 1, 1, "none"}, kSteps, kSteps).status, 0);
  ASSERT_EQ(train("run", {2, 1, 1, "parameters"}, kSteps, 2).status, 75);
  ASSERT_EQ(train("run", {1, 1, 2, "states"}, kSteps, 4).status, 75);
  const auto last = train("run", {1, 1, 1, "gradients"}, kSteps, kSteps);
  ASSERT_EQ(last.status, 0) << last.err;
  EXPECT_NE(last.out.find("after step 4; a rank read at most "), std::string::npos) << last.out;
  expect_same_course("run", "one");
}

}  // namespace
}  // namespace longspan
