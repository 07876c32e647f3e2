/// `longspan inspect` as a process: exit status, output on a terminal and in a pipe, and how much
/// it reads and holds.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/checkpoint_reader.hpp"
#include "launcher/checkpoint_diff.hpp"
#include "support/process.hpp"
#include "tests/io/checkpoint_files.hpp"
#include "tests/io/large_checkpoint.hpp"
#include "tests/support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using namespace io::testing;
using Json = nlohmann::json;

class InspectCommand : public ::testing::Test {
 protected:
  std::string write(const std::string& name, std::vector<TestTensor>& tensors) {
    return io::write_checkpoint(own_.file(name), arrays_of(tensors), test_facts(1),
                                Communicator::self());
  }
  testing_support::TemporaryDirectory own_;
};

TEST_F(InspectCommand, SlicesAreRead) {
  auto tensors = test_tensors();
  const std::string path = write("a", tensors);
  const auto values = [&](const std::string& request) {
    const auto r = testing_support::longspan({"inspect", path, "--tensor", request, "--json"});
    EXPECT_EQ(r.status, 0) << r.err;
    return Json::parse(r.out);
  };
  // Element i is (3 i + 1) / 2.
  Json json = values("model/embedding.weight[1:3, -2:]");
  EXPECT_EQ(json["values"], Json::parse("[[117.5, 119], [177.5, 179]]")) << json;
  EXPECT_EQ(json["shape"], Json::parse("[2, 2]"));
  EXPECT_EQ(json["slice"], "[1:3, 38:40]");
  EXPECT_EQ(values("embedding.weight[-1, 0]")["values"], 3600.5);
  EXPECT_EQ(values("norm.weight[5]")["values"], 8.5) << "the model's, not the optimizer's";
  EXPECT_EQ(values("embedding.weight[7:7]")["values"], Json::array());
  EXPECT_EQ(values("rng/state[-2:]")["values"], Json::parse("[26, 29]"));
  // All elements, over several pieces of the walk.
  json = values("half[...]");
  ASSERT_EQ(json["values"].size(), 12U);
  EXPECT_EQ(json["values"][11][6].size(), 3U);

  const auto text = testing_support::longspan({"inspect", path, "--tensor", "tiny[0, 1:3]"});
  EXPECT_EQ(text.out, "model/tiny[0, 1:3]  f32 [2] of [1, 5]\n\n  [0, 1:3]    3  4.5\n");
  auto r = testing_support::longspan({"inspect", path, "--tensor", "e[0]"});
  EXPECT_EQ(r.status, 2);
  EXPECT_TRUE(contains(r.err, "a slice is of one: model/embedding.weight, model/norm.weight"))
      << r.err;
  r = testing_support::longspan({"inspect", path, "--tensor", "norm.weight[40]"});
  EXPECT_EQ(r.status, 2);
  EXPECT_TRUE(contains(r.err, "index 40 is outside of dim 0, which has 40")) << r.err;
}

/// Colours are for terminals whose user wants them.
TEST_F(InspectCommand, ColoursOnATerminalOnly) {
  auto tensors = test_tensors();
  const std::string path = write("a", tensors);
  const auto shown = [&](const std::string& environment) {
    return testing_support::run_process(
        {"env", "TERM=xterm", "script", "-qec",
         fmt::format("env {} {} inspect {}", environment, testing_support::longspan_path(), path),
         "/dev/null"});
  };
  const auto terminal = shown("NO_COLOR=");
  if (terminal.status != 0) GTEST_SKIP() << "no `script` to make a terminal with";
  EXPECT_TRUE(contains(terminal.out, "\033[1m")) << terminal.out;
  EXPECT_FALSE(contains(shown("NO_COLOR=1").out, "\033[")) << "the user says no";
  EXPECT_FALSE(contains(shown("TERM=dumb").out, "\033["));
  EXPECT_FALSE(contains(testing_support::longspan({"inspect", path}).out, "\033[")) << "a pipe";
}

TEST_F(InspectCommand, StatusIsThatOfDiff) {
  auto tensors = test_tensors();
  const std::string a = write("a", tensors), b = write("b", tensors);
  tensors[1].local[0] ^= 1;
  const std::string c = write("c", tensors);
  const auto run = [](const std::vector<std::string>& arguments) {
    std::vector<std::string> all = {"inspect"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return testing_support::longspan(all);
  };
  EXPECT_EQ(run({a, "--diff", b}).status, 0);
  EXPECT_EQ(run({a, "--diff", own_.file("b")}).status, 0) << "a folder of checkpoints: the newest";
  EXPECT_EQ(run({a, "--diff", c}).status, 1);
  const auto json = run({a, "--diff", c, "--json"});
  EXPECT_EQ(json.status, 1);
  EXPECT_EQ(Json::parse(json.out)["counts"]["values"], 1);
  EXPECT_EQ(run({a, "--diff", own_.file("none")}).status, 2);
  EXPECT_EQ(run({a, "--diff", b, "--stats"}).status, 2);
  // A flipped byte behind an equal hash: trusted without --verify, found with it.
  const io::CheckpointReader reader(b);
  flip_byte(b + "/shard-00000-of-00001.h5", reader.tensors()[0].blocks[0].file_offset);
  EXPECT_EQ(run({a, "--diff", b}).status, 0);
  const auto verified = run({a, "--diff", b, "--verify"});
  EXPECT_EQ(verified.status, 3);
  EXPECT_TRUE(contains(verified.err, "model/embedding.weight: hash is")) << verified.err;
  std::filesystem::remove(b + "/shard-00000-of-00001.h5");
  EXPECT_EQ(run({a, "--diff", b}).status, 3) << "what is not read must be there";
}

/// "VmRSS", "VmHWM": resident bytes of this process, now and at most.
std::int64_t resident(const std::string& which) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(which + ":")) return std::stoll(line.substr(which.size() + 1)) * 1024;
  return -1;
}

TEST_F(InspectCommand, MemoryDoesNotGrowWithTheTensors) {
  std::string a, b;
  {
    std::vector<TestTensor> tensors;
    tensors.emplace_back("model/w", DType::kF32, Shape{16384, 1024}, 0);  // 67 MB
    a = write("a", tensors);
    tensors[0].local[50'000'003] ^= 0x40;
    b = write("b", tensors);
  }
  std::ofstream("/proc/self/clear_refs") << "5" << std::flush;  // VmHWM begins anew
  const std::int64_t before = resident("VmRSS");
  if (before < 0 || resident("VmHWM") > before + 1'000'000)
    GTEST_SKIP() << "this system does not tell a peak of memory that can be set back";
  const CheckpointDiff result = compare_checkpoints(a, b, false);
  EXPECT_EQ(result.tensors.at(0).differing, 1);
  EXPECT_LT(resident("VmHWM") - before, 60'000'000) << "both tensors together are 134 MB";
}

TEST_F(InspectCommand, ListingReadsMetadataAlone) {
  const std::string path = own_.file("step-0000001000");
  write_large_checkpoint(path, 60, 8);  // holes of 3 GB: neither HDF5 files nor filled
  const auto r = testing_support::longspan({"inspect", path});
  EXPECT_EQ(r.status, 0) << r.err << r.out;
  EXPECT_TRUE(contains(r.out, "3.1 GB in 8 shards")) << r.out;
  EXPECT_TRUE(contains(r.out, "blocks.0-2.part5.weight")) << r.out;
  EXPECT_EQ(testing_support::longspan({"inspect", path, "--tensor", "part5[0,0]"}).status, 2);
  EXPECT_EQ(
      testing_support::longspan({"inspect", path, "--tensor", "model/blocks.0.part5.weight[0,0]"})
          .status,
      3)
      << "no shard of this checkpoint";
  std::filesystem::resize_file(path + "/shard-00003-of-00008.h5", 5000);
  const auto damaged = testing_support::longspan({"inspect", path});
  EXPECT_EQ(damaged.status, 3);
  EXPECT_TRUE(contains(damaged.out, "shard-00003-of-00008.h5  60 tensors  blocks are gone"))
      << damaged.out;
}

}  // namespace
}  // namespace longspan::launcher
