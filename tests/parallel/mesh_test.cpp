#include "parallel/mesh.hpp"

#include <gtest/gtest.h>

#include <set>

#include "parallel/context_parallel.hpp"
#include "parallel/error.hpp"

namespace longspan {
namespace {

TEST(Mesh, WorksOutWhatIsZero) {
  EXPECT_EQ(resolve_mesh({0, 1}, 6).data, 6);
  EXPECT_EQ(resolve_mesh({0, 3}, 6).data, 2);
  EXPECT_EQ(resolve_mesh({2, 0}, 6).context, 3);
  EXPECT_EQ(resolve_mesh({0, 0}, 6).data, 6);
  EXPECT_EQ(resolve_mesh({0, 3, 2}, 12).data, 2);
  EXPECT_EQ(resolve_mesh({2, 0, 3}, 12).context, 2);
  EXPECT_EQ(resolve_mesh({2, 2, 0}, 12).tensor, 3);
  EXPECT_EQ(to_string(resolve_mesh({2, 2, 0}, 12)), "mesh.data=2 mesh.context=2 mesh.tensor=3");
}

TEST(Mesh, AnImpossibleOneSaysTheEquationAndTwoThatFit) {
  try {
    resolve_mesh({2, 4}, 6);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), ExitStatus::kUsage);
    EXPECT_STREQ(
        e.what(),
        "mesh.data=2 * mesh.context=4 * mesh.tensor=1 does not make 6 ranks: set mesh.data=6 "
        "mesh.context=1 (for speed) or "
        "mesh.data=1 mesh.context=6 (for long sequences), or start 8 ranks");
  }
  EXPECT_THROW(resolve_mesh({0, 4}, 6), Error);
}

TEST(SequencePositions, CoverEveryTokenOnceOnAnyNumberOfRanks) {
  for (auto layout : {SequenceLayout::kContiguous, SequenceLayout::kZigzag})
    for (std::int64_t length : {1, 7, 64, 1000})
      for (int ranks : {1, 2, 3, 5, 8}) {
        std::multiset<std::int32_t> seen;
        std::set<std::size_t> sizes;
        for (int r = 0; r < ranks; ++r) {
          const auto positions = sequence_positions(length, r, ranks, layout);
          sizes.insert(positions.size());
          for (auto p : positions)
            if (p >= 0) seen.insert(p);
        }
        EXPECT_EQ(sizes.size(), 1u) << "ranks hold different numbers of tokens";
        EXPECT_EQ(seen.size(), static_cast<std::size_t>(length));
        EXPECT_EQ(std::set<std::int32_t>(seen.begin(), seen.end()).size(),
                  static_cast<std::size_t>(length));
      }
}

TEST(SequencePositions, TheLayoutIsZigzagForACausalMaskWithoutAWindowAlone) {
  EXPECT_EQ(layout_for(true, 0), SequenceLayout::kZigzag);
  EXPECT_EQ(layout_for(true, 1), SequenceLayout::kContiguous);
  EXPECT_EQ(layout_for(true, 4096), SequenceLayout::kContiguous);
  EXPECT_EQ(layout_for(false, 0), SequenceLayout::kContiguous);
  EXPECT_EQ(layout_for(false, 7), SequenceLayout::kContiguous);
}

TEST(SequencePositions, ZigzagGivesEveryRankTheSameCausalWork) {
  const std::int64_t length = 960;
  for (int ranks : {2, 3, 5, 8}) {
    std::set<std::int64_t> work;
    for (int r = 0; r < ranks; ++r) {
      std::int64_t pairs = 0;
      for (auto p : sequence_positions(length, r, ranks, SequenceLayout::kZigzag)) pairs += p + 1;
      work.insert(pairs);
    }
    EXPECT_EQ(work.size(), 1u) << ranks;
  }
}

}  // namespace
}  // namespace longspan
