/// Taking mpirun's mixed streams apart, and which message is the one that matters.
#include "launcher/rank_output.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using Lines = std::vector<std::pair<int, std::string>>;

Lines split(const std::string& text, std::size_t piece) {
  TagSplitter splitter;
  Lines all;
  const auto add = [&](const std::vector<RankLine>& lines) {
    for (const RankLine& line : lines) all.emplace_back(line.rank, line.text);
  };
  for (std::size_t at = 0; at < text.size(); at += piece)
    add(splitter.take(std::string_view(text).substr(at, piece)));
  add(splitter.finish());
  return all;
}

TEST(TagSplitter, JoinsWhatMpirunHasCut) {
  // As Open MPI 4.1.4 was seen to write it: two ranks that print a line in two pieces each.
  const std::string text =
      "[1,0]<stdout>:abc[1,1]<stdout>:abc[1,0]<stdout>:def\n"
      "[1,0]<stdout>:x y\n"
      "[1,1]<stdout>:def\n"
      "[1,10]<stderr>:no end";
  const Lines expected = {{0, "abcdef"}, {0, "x y"}, {1, "abcdef"}, {10, "no end"}};
  for (const std::size_t piece : {1, 2, 3, 5, 14, 1000}) EXPECT_EQ(split(text, piece), expected);
}

TEST(TagSplitter, KeepsBracketsThatAreNoTags) {
  const std::string text =
      "[1,2]<stdout>:[vm:77] a [1,2] [1,3]<std list[3], -- [\n[1,2]<stdout>:[1,x]\n";
  const Lines expected = {{2, "[vm:77] a [1,2] [1,3]<std list[3], -- ["}, {2, "[1,x]"}};
  for (const std::size_t piece : {1, 4, 1000}) EXPECT_EQ(split(text, piece), expected);
}

TEST(TagSplitter, WordsWithoutATagAreMpiruns) {
  const std::string dashes(74, '-');
  const std::string text = "mpirun says\n[1,1]<stderr>:rank\n" + dashes + "\nin a frame\n" +
                           dashes + "\n[1,1]<stderr>:again\n";
  const Lines expected = {{kMpirun, "mpirun says"}, {1, "rank"},       {kMpirun, dashes},
                          {kMpirun, "in a frame"},  {kMpirun, dashes}, {1, "again"}};
  for (const std::size_t piece : {1, 7, 1000}) EXPECT_EQ(split(text, piece), expected);
  // Behind a line that its rank has not ended, as seen.
  const Lines open = split("[1,1]<stderr>:half" + dashes + "\nin a frame\n", 1000);
  EXPECT_EQ(open, (Lines{{kMpirun, dashes}, {kMpirun, "in a frame"}, {1, "half"}}));
}

class Output : public testing::Test {
 protected:
  /// What the user sees on both streams.
  void take(const std::string& out, const std::string& errors) {
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    output_.take(RankOutput::Stream::kOut, out);
    output_.take(RankOutput::Stream::kErrors, errors);
    output_.finish();
    out_ = testing::internal::GetCapturedStdout();
    errors_ = testing::internal::GetCapturedStderr();
  }
  static std::string read(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static std::string exit_banner(int rank, int status) {
    const std::string dashes(74, '-');
    return dashes +
           "\nmpirun detected that one or more processes exited with non-zero status, thus "
           "causing\nthe job to be terminated. The first process to do so was:\n\n"
           "  Process name: [[5952,1]," +
           std::to_string(rank) + "]\n  Exit code:    " + std::to_string(status) + "\n" + dashes +
           "\n";
  }

  testing_support::TemporaryDirectory directory_;
  LaunchLog log_{directory_.file("run")};
  RankOutput output_{&log_};
  std::string out_, errors_;
};

TEST_F(Output, Rank0IsCleanAndOthersAreNamed) {
  take("[1,0]<stdout>:step 1\n[1,3]<stdout>:hello\n",
       "[1,0]<stderr>:warning: w\n[1,2]<stderr>:odd\n"
       "[1,5]<stderr>:longspan: rank 5 (n2): names itself\nmpirun's own\n");
  EXPECT_EQ(out_, "step 1\n[3] hello\n");
  EXPECT_EQ(errors_, "warning: w\n[2] odd\nlongspan: rank 5 (n2): names itself\nmpirun's own\n");
}

TEST_F(Output, TheLogHasAllOnceThereIsADirectory) {
  take("[1,0]<stdout>:before\n", "");
  EXPECT_FALSE(std::filesystem::exists(directory_.file("run"))) << "launch made the run directory";
  std::filesystem::create_directory(directory_.file("run"));
  take("[1,1]<stdout>:after\n", "[1,0]<stderr>:error\nmpirun's own\n");
  testing::internal::CaptureStderr();
  output_.say("launch: restart");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "longspan: launch: restart\n");
  EXPECT_EQ(read(directory_.file("run/launch.log")),
            "[0] before\n[1] after\n[0] error\n[mpirun] mpirun's own\n[launch] launch: restart\n");
}

TEST_F(Output, TheRankThatLeftFirstHasTheSay) {
  // Rank 0 only misses rank 2, but speaks earlier.
  take("",
       "[1,0]<stderr>:longspan: rank 0 (n1): a peer is gone\n"
       "[1,2]<stderr>:longspan: rank 2 (n2): the disk is full\n" +
           exit_banner(2, 1) + "[1,1]<stderr>:noise\n");
  EXPECT_EQ(output_.first_failure(), "longspan: rank 2 (n2): the disk is full");
  EXPECT_TRUE(output_.buried());
  EXPECT_EQ(errors_.find("Process name"), std::string::npos) << errors_;
}

TEST_F(Output, DeathComesBeforeWords) {
  const std::string dashes(74, '-');
  take("", "[1,0]<stderr>:longspan: rank 0 (n1): a peer is gone\n" + dashes +
               "\nmpirun noticed that process rank 1 with PID 0 on node n2 exited on signal 11 "
               "(Segmentation fault).\n" +
               dashes + "\n");
  EXPECT_TRUE(output_.death_seen());
  EXPECT_EQ(output_.first_failure(),
            "longspan: rank 1 (n2): ended by signal 11 (Segmentation fault)");
  EXPECT_FALSE(output_.buried());
}

TEST_F(Output, ARankThatLeavesWithoutAWordIsNamed) {
  take("", exit_banner(3, 7));
  EXPECT_EQ(output_.first_failure(), "longspan: rank 3: left with status 7 and said nothing");
  EXPECT_TRUE(output_.buried());
  EXPECT_EQ(errors_, "");
}

TEST_F(Output, NobodyFailed) {
  take("", "mpirun's own\n[1,0]<stderr>:longspan: warning: hm\n");
  EXPECT_FALSE(output_.began());
  take("[1,0]<stdout>:done\n", "");
  EXPECT_TRUE(output_.began());
  EXPECT_EQ(output_.first_failure(), "");
}

}  // namespace
}  // namespace longspan::launcher
