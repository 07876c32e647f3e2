// label: slow
// timeout: 180
/// Other tools see a checkpoint: h5py, h5ls, h5dump, h5diff and h5repack open index.h5 and find
/// whole tensors by name, of a run on two ranks whose optimizer states are in several blocks a
/// shard.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

using testing_support::longspan;
using testing_support::run_process;
namespace fs = std::filesystem;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Python with h5py: .venv-tests, or what python3 is; empty if there is none.
std::string python_with_h5py() {
  for (const std::string& python :
       {std::string(LONGSPAN_SOURCE_DIR "/.venv-tests/bin/python"), std::string("python3")})
    if (run_process({"env", python, "-c", "import h5py, numpy"}).status == 0) return python;
  return "";
}

bool installed(const std::string& tool) {
  return run_process({"env", tool, "--version"}).status == 0;
}

class Tools : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new testing_support::TemporaryDirectory;
    const auto r = longspan({"prepare", "--kind", "text", "--output", folder_->file("d.h5"),
                             LONGSPAN_SOURCE_DIR "/model"});
    ASSERT_EQ(r.status, 0) << r.err;
    // Width 40: half of a matrix ends inside a row, so that a shard has several blocks of it.
    const auto trained = longspan({"launch",
                                   "--ranks",
                                   "2",
                                   "--config",
                                   LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                                   "--data.path",
                                   folder_->file("d.h5"),
                                   "--run.directory",
                                   folder_->file("run"),
                                   "--data.sequence-length",
                                   "64",
                                   "--model.width",
                                   "40",
                                   "--model.mlp-width",
                                   "51",
                                   "--train.steps",
                                   "4",
                                   "--train.stop-after",
                                   "2",
                                   "--checkpoint.every",
                                   "1",
                                   "--mesh.data",
                                   "2",
                                   "--optimizer.shard",
                                   "states"});
    ASSERT_EQ(trained.status == 75 ? 0 : trained.status, 0) << trained.err;
  }
  static void TearDownTestSuite() { delete folder_; }
  void SetUp() override {
    first_ = folder_->file("run/checkpoints/step-0000000001");
    second_ = folder_->file("run/checkpoints/step-0000000002");
    ASSERT_TRUE(fs::exists(second_ + "/index.h5"));
  }
  static testing_support::TemporaryDirectory* folder_;
  std::string first_, second_;
};
testing_support::TemporaryDirectory* Tools::folder_ = nullptr;

TEST_F(Tools, H5pySeesWhatInspectPrintsAndTheShardsHold) {
  const std::string python = python_with_h5py();
  if (python.empty()) GTEST_SKIP() << "no Python with h5py: tests/support/python_environment.sh";
  const std::string script = LONGSPAN_SOURCE_DIR "/tests/io/h5py_check.py";
  const auto r = run_process(
      {"env", python, script, second_, "--json", "--longspan", testing_support::longspan_path()});
  ASSERT_EQ(r.status, 0) << r.err << r.out;
  const auto report = nlohmann::json::parse(r.out);
  EXPECT_EQ(report["step"], 2);
  EXPECT_GE(report["pieces"], 2) << "some tensor lies in several blocks of one shard";
  const auto inspected =
      nlohmann::json::parse(longspan({"inspect", second_, "--stats", "--json"}).out);
  ASSERT_EQ(report["tensors"].size(), inspected["tensors"].size());
  for (const auto& tensor : inspected["tensors"]) {
    const auto& seen = report["tensors"].at(tensor["name"].get<std::string>());
    EXPECT_EQ(seen["shape"], tensor["shape"]);
    const double norm = seen["norm"], ours = tensor["statistics"]["norm"];
    EXPECT_NEAR(ours, norm, 1e-9 * norm) << tensor["name"];
  }
  // A shard that is missing shows as NaN, and the script says so.
  fs::rename(second_ + "/shard-00001-of-00002.h5", second_ + "/hidden");
  const auto broken = run_process({"env", python, script, second_});
  fs::rename(second_ + "/hidden", second_ + "/shard-00001-of-00002.h5");
  EXPECT_NE(broken.status, 0);
  EXPECT_TRUE(contains(broken.err, "is a shard missing?")) << broken.err;
}

TEST_F(Tools, Hdf5ToolsSeeWholeTensors) {
  for (const char* tool : {"h5ls", "h5dump", "h5diff", "h5repack"})
    if (!installed(tool)) GTEST_SKIP() << tool << " is not installed (package hdf5-tools)";
  const std::string one = first_ + "/index.h5", two = second_ + "/index.h5";
  const std::string tensor = "/model/embedding.token.weight";
  auto r = run_process({"h5ls", "-r", two});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_TRUE(contains(r.out, tensor + " Dataset {256, 40}")) << r.out;
  EXPECT_TRUE(contains(r.out, "/optimizer/exp_avg/final_norm.weight Dataset {40}")) << r.out;

  // Rows 127 and 128: on both sides of the border between the ranks.
  r = run_process(
      {"h5dump", "-y", "-m", "%.9g", "-w", "0", "-d", tensor, "-s", "127,0", "-c", "2,40", two});
  ASSERT_EQ(r.status, 0) << r.err;
  const auto shown = nlohmann::json::parse(
      longspan({"inspect", second_, "--tensor", "model/embedding.token.weight[127:129]", "--json"})
          .out)["values"];
  std::string numbers = r.out.substr(r.out.find("DATA {") + 6);
  for (char& c : numbers)
    if (c == ',' || c == '}') c = ' ';
  std::istringstream stream(numbers);
  for (int row = 0; row < 2; ++row)
    for (int column = 0; column < 40; ++column) {
      float value = 0;
      ASSERT_TRUE(stream >> value) << r.out;
      EXPECT_EQ(value, shown[row][column].get<float>()) << row << " " << column;
    }

  EXPECT_EQ(run_process({"h5diff", one, one, "/model", "/model"}).status, 0);
  r = run_process({"h5diff", one, two, tensor, tensor});
  EXPECT_EQ(r.status, 1) << "a step lies between them" << r.err;
  EXPECT_EQ(longspan({"inspect", first_, "--diff", second_}).status, 1);

  // All tensors in one ordinary file, equal to the index.
  const std::string whole = folder_->file("whole.h5");
  r = run_process({"h5repack", "-l", "CONTI", two, whole});
  ASSERT_EQ(r.status, 0) << r.err;
  fs::copy(whole, folder_->file("alone.h5"));
  EXPECT_EQ(run_process({"h5diff", two, folder_->file("alone.h5"), tensor, tensor}).status, 0);
  EXPECT_EQ(run_process({"h5diff", one, folder_->file("alone.h5"), tensor, tensor}).status, 1);
}

}  // namespace
}  // namespace longspan
