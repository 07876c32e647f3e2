// tests/gpu/run.sh, as it is on a machine with a GPU, on the emulated one with tiny shapes: every
// figure has its row, and a row that fails, is left out or is done already stops none of the
// others.
// label: slow
// timeout: 300
#include <gtest/gtest.h>

#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using testing_support::ProcessResult;
using testing_support::run_process;

class GpuFigures : public testing::Test {
 protected:
  /// A copy of what the script reads of the source folder: tests may damage it.
  void SetUp() override {
    const fs::path source = LONGSPAN_SOURCE_DIR, copy = folder_.path();
    fs::create_directories(copy / "tests");
    for (const char* part : {"tests/gpu", "tests/benchmarks", "configs"})
      fs::copy(source / part, copy / part, fs::copy_options::recursive);
  }
  ProcessResult run(const std::vector<std::string>& words, const std::string& python = "none") {
    std::vector<std::string> all = {
        "env", "LONGSPAN_CUDA_PLUGIN=" LONGSPAN_BINARY_DIR "/liblongspan_cuda_emulated.so",
        "LONGSPAN_PYTHON=" + python, folder_.file("tests/gpu/run.sh"), "--tiny"};
    all.insert(all.end(), words.begin(), words.end());
    all.push_back(LONGSPAN_BINARY_DIR);
    return run_process(all);
  }
  /// The row of the table, as words; empty if there is none.
  static std::vector<std::string> row(const ProcessResult& result, const std::string& name) {
    std::istringstream lines(result.out);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string word;
      std::vector<std::string> all;
      while (words >> word) all.push_back(word);
      if (all.size() > 1 && all[0] == name) return all;
    }
    return {};
  }
  static double number(const std::vector<std::string>& row, std::size_t at) {
    return row.size() > at ? std::atof(row[at].c_str()) : 0;
  }

  testing_support::TemporaryDirectory folder_;
};

TEST_F(GpuFigures, EveryFigureHasItsRow) {
  const ProcessResult result = run({"--only", "figures"});
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  for (const char* name :
       {"gpt2-124m", "gpt2-1.5b", "llama-1b-128k", "1m-tokens", "memory-bound"}) {
    SCOPED_TRACE(name);
    const std::vector<std::string> words = row(result, name);
    ASSERT_GT(words.size(), 5u) << result.out;
    EXPECT_TRUE(words[1] == "below" || words[1] == "reached") << words[1];
    EXPECT_GT(number(words, 2), 0);
    EXPECT_TRUE(std::isdigit(words[3][0])) << words[3];  // a share of little may round to nothing
  }
  EXPECT_GT(number(row(result, "gpt2-124m"), 3), 0);
  EXPECT_EQ(number(row(result, "gpt2-124m"), 2), 450000);
  EXPECT_EQ(row(result, "1m-tokens")[1], "reached") << result.out;
  for (const char* name : {"attention-own-forward", "attention-own-backward"}) {
    const std::vector<std::string> words = row(result, name);
    ASSERT_GT(words.size(), 4u) << result.out;
    EXPECT_EQ(words[1], "below");
    EXPECT_EQ(words[4], "TFLOP/s");
  }
  // What is not here is not measured, and the row says what it was.
  const std::vector<std::string> cudnn = row(result, "attention-cudnn-forward");
  ASSERT_GT(cudnn.size(), 4u) << result.out;
  EXPECT_EQ(cudnn[1], "n/a");
  EXPECT_EQ(cudnn[3], "n/a");
  EXPECT_NE(result.out.find("PyTorch: no none here"), std::string::npos) << result.out;
  EXPECT_TRUE(row(result, "llama-1b-1m").empty());
}

TEST_F(GpuFigures, GoesOnAfterARowThatFailsAndRepeatsIt) {
  const std::string config = folder_.file("configs/gpu/gpt2-124m.ini");
  fs::copy_file(config, config + ".good");
  std::ofstream(config, std::ios::app) << "\n[model]\nlayers = many\n";
  const std::string results = folder_.file("results");
  const std::vector<std::string> words = {"--only",    "gpt2-124m", "--only",
                                          "1m-tokens", "--results", results};
  const ProcessResult failed = run(words);
  EXPECT_EQ(failed.status, 1) << failed.out << failed.err;
  ASSERT_GT(row(failed, "gpt2-124m").size(), 2u) << failed.out;
  EXPECT_EQ(row(failed, "gpt2-124m")[1], "FAILED");
  EXPECT_NE(failed.out.rfind("longspan: "), std::string::npos) << failed.out;
  ASSERT_GT(row(failed, "1m-tokens").size(), 2u) << failed.out;
  EXPECT_EQ(row(failed, "1m-tokens")[1], "reached");

  fs::rename(config + ".good", config);
  const ProcessResult again = run({"--only", "gpt2-124m", "--results", results});
  EXPECT_EQ(again.status, 0) << again.out << again.err;
  ASSERT_GT(row(again, "gpt2-124m").size(), 2u) << again.out;
  EXPECT_EQ(row(again, "gpt2-124m")[1], "below");
}

TEST_F(GpuFigures, BeginsNothingThatHasNoTimeLeftAndKeepsWhatIsDone) {
  const std::string results = folder_.file("results");
  ASSERT_EQ(run({"--only", "memory-bound", "--results", results}).status, 0);
  const ProcessResult result = run({"--minutes", "0", "--results", results});
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  ASSERT_GT(row(result, "memory-bound").size(), 2u) << result.out;
  EXPECT_EQ(row(result, "memory-bound")[1], "below");
  ASSERT_GT(row(result, "gpt2-1.5b").size(), 3u) << result.out;
  EXPECT_EQ(row(result, "gpt2-1.5b")[1] + row(result, "gpt2-1.5b")[2], "notrun");
  EXPECT_NE(result.out.find("--only gpt2-1.5b"), std::string::npos) << result.out;
}

TEST_F(GpuFigures, RefusesWhatItDoesNotKnow) {
  const ProcessResult result = run({"--only", "gpt3"});
  EXPECT_EQ(result.status, 2);
  EXPECT_NE(result.err.find("--only gpt3"), std::string::npos) << result.err;
  EXPECT_EQ(run({"--minutes", "soon"}).status, 2);
}

TEST_F(GpuFigures, PyTorchStandsBesideThem) {
  const std::string python = LONGSPAN_SOURCE_DIR "/.venv-tests/bin/python";
  if (run_process({python, "-c", "import torch"}).status != 0) GTEST_SKIP() << "no torch here";
  const ProcessResult result =
      run({"--only", "attention-own-forward", "--only", "memory-bound", "--only", "gpt2-124m",
           "--only", "llama-1b-128k", "--only", "1m-tokens"},
          python);
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  EXPECT_EQ(result.out.find("n/a"), std::string::npos) << result.out;
  EXPECT_GT(number(row(result, "gpt2-124m"), 5), 0) << result.out;
  const std::vector<std::string> llama = row(result, "llama-1b-128k");
  ASSERT_GT(llama.size(), 6u) << result.out;
  EXPECT_TRUE(std::isdigit(llama[6][0])) << llama[6];  // "% MFU" is two words
  EXPECT_EQ(number(row(result, "1m-tokens"), 5), 1) << result.out;
}

}  // namespace
}  // namespace longspan
