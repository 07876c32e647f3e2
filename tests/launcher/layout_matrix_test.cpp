// label: slow
// timeout: 400
/// Checkpoints of any mesh and optimizer.shard continue on any other: a chain in which every axis
/// grows, shrinks and moves, and every mode of sharing follows others, on 1 to 4 ranks. What a rank
/// reads on the way, and that none of it comes through the virtual datasets.
#include <filesystem>

#include "io/checkpoint_reader.hpp"
#include "tests/launcher/layout_runs.hpp"

namespace longspan {
namespace {

using testing_support::Layout;

class LayoutMatrix : public testing_support::LayoutRuns {
 protected:
  std::string latest(const std::string& run) const {
    return folder_.file(run) + "/checkpoints/latest";
  }
  /// Continues `from` under a layout for a step; the bytes that the rank which read most has read,
  /// over those of the checkpoint.
  double share_read(const std::string& from, const Layout& layout,
                    const std::vector<std::string>& more) const {
    const std::string run = "reads " + layout.text();
    auto settings = more;
    settings.insert(settings.end(),
                    {"--checkpoint.resume", std::filesystem::canonical(latest(from))});
    const auto r = train(run, layout, 3, 1, settings);
    EXPECT_EQ(r.status, 75) << r.err;
    const auto at = r.out.find("a rank read at most ");
    if (at == std::string::npos) return ADD_FAILURE() << r.out, 0;
    double read = 0, all = 0;
    char read_unit[3] = {}, all_unit[3] = {};
    if (std::sscanf(r.out.c_str() + at, "a rank read at most %lf %2s of its %lf %2s", &read,
                    read_unit, &all, all_unit) != 4)
      ADD_FAILURE() << r.out.substr(at, 80);
    EXPECT_STREQ(read_unit, "MB");
    EXPECT_STREQ(all_unit, "MB");
    return read / all;
  }
};

TEST_F(LayoutMatrix, EveryLayoutContinuesAnyOther) {
  const std::vector<Layout> chain = {
      {1, 1, 1, "none"},      {2, 1, 2, "states"},    {1, 2, 2, "parameters"},
      {2, 2, 1, "gradients"}, {1, 1, 4, "none"},      {4, 1, 1, "parameters"},
      {1, 4, 1, "states"},    {1, 1, 2, "gradients"}, {1, 3, 1, "states"},
      {2, 1, 1, "none"},      {1, 2, 2, "gradients"}, {2, 1, 2, "parameters"},
      {1, 1, 1, "states"}};
  const int steps = static_cast<int>(chain.size()) + 2;
  ASSERT_EQ(train("one", {1, 1, 1, "none"}, steps, steps).status, 0);
  for (std::size_t i = 0; i < chain.size(); ++i) {
    const bool last = i + 1 == chain.size();
    const auto r = train("chain", chain[i], steps, last ? steps : static_cast<int>(i) + 1);
    ASSERT_EQ(r.status, last ? 0 : 75) << chain[i].text() << ": " << r.err << r.out;
    io::CheckpointReader reader(latest("chain"));
    EXPECT_EQ(reader.facts().world_size, chain[i].ranks());
    EXPECT_EQ(reader.facts().next_sample, 4 * reader.facts().step) << chain[i].text();
    EXPECT_TRUE(reader.verify().empty()) << chain[i].text();
  }
  expect_same_course("chain", "one");
}

TEST_F(LayoutMatrix, ARankReadsWhatItNeeds) {
  // Matrices of 1 to 4 MB, several chunks each.
  const std::vector<std::string> large = {"--model.width", "512", "--train.global-batch", "4"};
  ASSERT_EQ(train("whole", {1, 1, 1, "none"}, 3, 1, large).status, 75);
  // Every rank has all of it.
  EXPECT_NEAR(share_read("whole", {2, 1, 1, "none"}, large), 1.0, 0.01);
  // A quarter each, and the rest of the chunks at either end.
  EXPECT_LT(share_read("whole", {4, 1, 1, "parameters"}, large), 0.25 * 1.3);
  EXPECT_LT(share_read("whole", {1, 4, 1, "parameters"}, large), 0.25 * 1.3);
  // The moments are two thirds of it.
  EXPECT_LT(share_read("whole", {2, 1, 1, "states"}, large), (1.0 / 3 + 2.0 / 6) * 1.1);
  // Of the matrices that are split by columns (5 parts of 12) a rank needs a piece of every row,
  // which is shorter than a chunk; of the others a quarter.
  EXPECT_LT(share_read("whole", {1, 1, 4, "none"}, large), (5.0 / 12 + 7.0 / 12 / 4) * 1.15);
}

TEST_F(LayoutMatrix, NothingIsReadThroughTheVirtualDatasets) {
  const std::string python = LONGSPAN_SOURCE_DIR "/.venv-tests/bin/python";
  if (testing_support::run_process({python, "-c", "import h5py"}).status != 0)
    GTEST_SKIP() << "no h5py: tests/support/python_environment.sh";
  constexpr int kSteps = 4;
  ASSERT_EQ(train("one", {1, 1, 1, "none"}, kSteps, kSteps).status, 0);
  ASSERT_EQ(train("run", {2, 1, 1, "states"}, kSteps, 2).status, 75);
  // Without them the checkpoint is as good to the program.
  const auto removed = testing_support::run_process(
      {python, "-c",
       "import h5py, sys\nwith h5py.File(sys.argv[1], 'r+', libver='v110') as f:\n"
       "  assert f['model/blocks.0.attention.output.weight'].is_virtual\n  for name in [n for n in "
       "f if isinstance(f[n], h5py.Group) and n != 'manifest']: del f[name]\n",
       latest("run") + "/index.h5"});
  ASSERT_EQ(removed.status, 0) << removed.err;
  const auto r = train("run", {1, 1, 2, "none"}, kSteps, kSteps);
  ASSERT_EQ(r.status, 0) << r.err;
  expect_same_course("run", "one");
}

}  // namespace
}  // namespace longspan
