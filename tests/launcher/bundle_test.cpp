// The relocatable folder that launcher/bundle.sh makes: moved, it starts from its own libraries
// alone and trains on two ranks; and tests/gpu/run.sh in it.
// label: slow
// timeout: 300
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "support/process.hpp"
#include "support/sample_text.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

using testing_support::ProcessResult;
using testing_support::run_process;

class Bundle : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new testing_support::TemporaryDirectory;
    made_ = run_process({LONGSPAN_SOURCE_DIR "/launcher/bundle.sh", "--build", LONGSPAN_BINARY_DIR,
                         "--output", folder_->file("made")});
    // Somewhere else, under a name that scripts like to stumble over.
    std::filesystem::rename(folder_->file("made"), folder_->file("moved to here"));
  }
  static void TearDownTestSuite() { delete folder_; }
  static std::string bundle() { return folder_->file("moved to here"); }
  /// In an environment that has nothing of the caller's.
  static ProcessResult run(const std::vector<std::string>& words) {
    std::vector<std::string> all = {"env",
                                    "-i",
                                    "PATH=/usr/bin:/bin",
                                    "HOME=" + folder_->path(),
                                    "OMP_WAIT_POLICY=passive",
                                    "OMP_NUM_THREADS=1"};
    all.insert(all.end(), words.begin(), words.end());
    return run_process(all);
  }

  static testing_support::TemporaryDirectory* folder_;
  static ProcessResult made_;
};

testing_support::TemporaryDirectory* Bundle::folder_ = nullptr;
ProcessResult Bundle::made_;

TEST_F(Bundle, StartsFromAnotherFolderOnItsOwnLibraries) {
  ASSERT_EQ(made_.status, 0) << made_.out << made_.err;
  const ProcessResult version = run({bundle() + "/bin/longspan", "--version"});
  EXPECT_EQ(version.status, 0) << version.err;
  EXPECT_EQ(version.out.find("longspan "), 0u) << version.out;
  const ProcessResult libraries =
      run({"LD_TRACE_LOADED_OBJECTS=1", bundle() + "/bin/longspan", "--version"});
  // Traced are the shell and its tools, too: what counts is where the program's come from.
  for (const char* name : {"libmpi.so.40", "libhdf5", "libboost_program_options", "libdnnl"}) {
    const std::size_t at = libraries.out.find(std::string("\t") + name);
    if (at == std::string::npos) continue;
    const std::string line = libraries.out.substr(at, libraries.out.find('\n', at) - at);
    EXPECT_NE(line.find(bundle() + "/lib/"), std::string::npos) << line;
  }
  const ProcessResult loaded =
      run({"sh", "-c",
           "bundle='" + bundle() +
               "'; . \"$bundle/environment.sh\"; ldd \"$bundle/libexec/longspan\""});
  for (const char* name : {"libmpi.so", "libhdf5", "libboost_program_options", "libdnnl"}) {
    const std::size_t at = loaded.out.find(name);
    ASSERT_NE(at, std::string::npos) << name << "\n" << loaded.out;
    const std::string line = loaded.out.substr(at, loaded.out.find('\n', at) - at);
    EXPECT_NE(line.find(bundle() + "/lib/"), std::string::npos) << line;
  }
  EXPECT_EQ(loaded.out.find("not found"), std::string::npos) << loaded.out;
}

TEST_F(Bundle, TrainsOnTwoRanksWithItsOwnMpirun) {
  ASSERT_EQ(made_.status, 0) << made_.out << made_.err;
  const std::string text = folder_->file("a.txt"), data = folder_->file("d.h5");
  FILE* file = std::fopen(text.c_str(), "w");
  std::fputs(testing_support::sample_text(60000).c_str(), file);
  std::fclose(file);
  ASSERT_EQ(
      run({bundle() + "/bin/longspan", "prepare", "--kind", "text", "--output", data, text}).status,
      0);
  const ProcessResult result =
      run({bundle() + "/bin/longspan", "launch", "--ranks", "2", "--config",
           bundle() + "/share/configs/tiny.ini", "--data.path", data, "--run.directory",
           folder_->file("run"), "--data.sequence-length", "64", "--train.steps", "2",
           "--mesh.context", "2", "--train.validate-every", "0"});
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  EXPECT_TRUE(std::filesystem::exists(folder_->file("run") + "/checkpoints/latest"));
}

TEST_F(Bundle, ItsGpuTestsSayWhenThereIsNoGpu) {
  ASSERT_EQ(made_.status, 0) << made_.out << made_.err;
  if (std::filesystem::exists("/dev/nvidiactl")) GTEST_SKIP() << "there is a GPU here";
  const ProcessResult result = run({bundle() + "/bin/run-gpu-tests"});
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  EXPECT_EQ(result.out.find("no GPU to test: "), 0u) << result.out << result.err;
}

TEST_F(Bundle, MeasuresFiguresOnAnEmulatedGpu) {
  ASSERT_EQ(made_.status, 0) << made_.out << made_.err;
  const ProcessResult result =
      run({"LONGSPAN_CUDA_PLUGIN=" LONGSPAN_BINARY_DIR "/liblongspan_cuda_emulated.so",
           "LONGSPAN_PYTHON=none", bundle() + "/bin/run-gpu-tests", "--tiny", "--only", "gpt2-124m",
           "--only", "memory-bound"});
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  EXPECT_NE(result.out.find("\n gpt2-124m  "), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("\n memory-bound  "), std::string::npos) << result.out;
  EXPECT_TRUE(std::filesystem::exists(bundle() + "/share/pytorch/compare_pytorch_gpu.py"));
}

}  // namespace
}  // namespace longspan
