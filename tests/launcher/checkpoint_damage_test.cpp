// label: slow
// timeout: 120
/// Checkpoints that cannot be read or written, from the outside: what the run does, what it says,
/// and that it ends with the same bits as a run nothing happened to.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/checkpoint_reader.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using testing_support::longspan;
using testing_support::ProcessResult;

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

class CheckpointDamage : public testing::Test {
 protected:
  void SetUp() override {
    const auto r =
        longspan({"prepare", "--kind", "text", "--output", data_, LONGSPAN_SOURCE_DIR "/launcher"});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  std::vector<std::string> settings(const std::string& run, std::vector<std::string> more) const {
    std::vector<std::string> all = {"--config",
                                    LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                                    "--data.path",
                                    data_,
                                    "--run.directory",
                                    folder_.file(run),
                                    "--data.sequence-length",
                                    "64",
                                    "--train.steps",
                                    "10",
                                    "--train.validate-every",
                                    "0",
                                    "--checkpoint.every",
                                    "2",
                                    "--checkpoint.keep",
                                    "0"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  ProcessResult train(const std::string& run, std::vector<std::string> more = {}) const {
    auto all = settings(run, std::move(more));
    all.insert(all.begin(), {"launch", "--max-restarts", "0", "--ranks", "2"});
    return longspan(all);
  }
  std::string checkpoint(const std::string& run, int step) const {
    return fmt::format("{}/checkpoints/step-{:010}", folder_.file(run), step);
  }
  /// Steps, losses and gradient norms as written: equal texts are equal bits.
  std::vector<std::string> numbers(const std::string& run) const {
    std::vector<std::string> rows;
    std::istringstream lines(read(folder_.file(run) + "/metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const auto j = nlohmann::json::parse(line);
      rows.push_back(j["step"].dump() + " " + j["loss"].dump() + " " + j["grad_norm"].dump());
    }
    return rows;
  }
  /// Flips a bit in what rank 1 wrote of a tensor.
  static void flip_bit(const std::string& path, const std::string& tensor) {
    const io::CheckpointReader reader(path);
    for (const auto& entry : reader.tensors())
      for (const auto& block : entry.blocks) {
        if (entry.name != tensor || block.shard != 1) continue;
        std::fstream file(path + "/" + reader.shard_files()[1],
                          std::ios::in | std::ios::out | std::ios::binary);
        const auto at = static_cast<std::streamoff>(block.file_offset) + 5;
        file.seekg(at);
        const char byte = static_cast<char>(file.get() ^ 0x10);
        file.seekp(at);
        file.put(byte);
        return;
      }
    FAIL() << "rank 1 wrote nothing of " << tensor;
  }
  static bool verifies(const std::string& path) {
    return longspan({"inspect", path, "--verify"}).status == 0;
  }

  testing_support::TemporaryDirectory folder_;
  std::string data_ = folder_.file("d.h5");
};

TEST_F(CheckpointDamage, FallsBackToTheNewestGoodOneAndSaysSo) {
  ASSERT_EQ(train("whole").status, 0);
  ASSERT_EQ(train("run", {"--train.stop-after", "8"}).status, 75);
  const std::string eight = checkpoint("run", 8), six = checkpoint("run", 6),
                    four = checkpoint("run", 4);
  const std::string name = "model/blocks.0.attention.output.weight";
  flip_bit(eight, name);
  fs::resize_file(six + "/shard-00000-of-00002.h5", 300'000);
  const std::string damaged = read(eight + "/shard-00001-of-00002.h5");
  // It stops before the damaged step comes round again.
  const auto r = train("run", {"--train.stop-after", "1"});
  EXPECT_EQ(r.status, 75) << r.err << r.out;
  EXPECT_TRUE(contains(r.err, eight + "/shard-00001-of-00002.h5: tensor '" + name + "' is damaged"))
      << r.err;
  EXPECT_TRUE(contains(r.err, six + "/shard-00000-of-00002.h5: the shard has 300000 bytes"))
      << r.err;
  EXPECT_TRUE(contains(r.err, "more tensors are lost")) << r.err;
  EXPECT_EQ(count(r.err, four + " is taken instead"), 2) << r.err;
  EXPECT_EQ(testing_support::count_lines(r.err), 2) << r.err;
  EXPECT_TRUE(contains(r.out, "continuing from " + four + " after step 4")) << r.out;
  EXPECT_EQ(numbers("run").size(), 5U) << "the lines of the lost steps are still there";
  EXPECT_EQ(read(eight + "/shard-00001-of-00002.h5"), damaged);
  // Nothing is said any more: step 5 is the newest. What is damaged is written again.
  const auto rest = train("run");
  EXPECT_EQ(rest.status, 0) << rest.err;
  EXPECT_EQ(rest.err, "");
  for (const int step : {4, 5, 6, 8, 10}) EXPECT_TRUE(verifies(checkpoint("run", step))) << step;
  EXPECT_EQ(numbers("run"), numbers("whole"));
}

TEST_F(CheckpointDamage, WithoutAnyGoodOneTheRunIsRefusedAndLeftAsItIs) {
  ASSERT_EQ(train("run", {"--train.stop-after", "4"}).status, 75);
  const std::string metrics = read(folder_.file("run") + "/metrics.jsonl");
  flip_bit(checkpoint("run", 2), "model/blocks.0.attention.output.weight");
  fs::remove(checkpoint("run", 4) + "/shard-00001-of-00002.h5");
  const auto refused = [&](const std::string& four) {
    const auto r = train("run");
    EXPECT_EQ(r.status, 3) << r.out;
    EXPECT_EQ(testing_support::count_lines(r.err), 1) << r.err;
    EXPECT_TRUE(contains(r.err, "every checkpoint of " + folder_.file("run"))) << r.err;
    EXPECT_TRUE(contains(r.err, checkpoint("run", 4) + four)) << r.err;
    EXPECT_TRUE(contains(r.err, checkpoint("run", 2))) << r.err;
    EXPECT_EQ(read(folder_.file("run") + "/metrics.jsonl"), metrics);
  };
  refused("/shard-00001-of-00002.h5: the shard is missing: '");
  fs::remove(checkpoint("run", 4) + "/index.h5");
  fs::remove(checkpoint("run", 2) + "/index.h5");
  refused(": no checkpoint");
  EXPECT_TRUE(contains(train("run", {"--checkpoint.resume", "never"}).err, "every checkpoint"));
}

TEST_F(CheckpointDamage, ANamedCheckpointHasNoSubstitute) {
  ASSERT_EQ(train("run", {"--train.stop-after", "4"}).status, 75);
  flip_bit(checkpoint("run", 4), "model/blocks.0.attention.output.weight");
  const auto r = train("other", {"--checkpoint.resume", checkpoint("run", 4)});
  EXPECT_EQ(r.status, 3) << r.out;
  EXPECT_TRUE(contains(r.err, "shard-00001-of-00002.h5: tensor '")) << r.err;
  EXPECT_EQ(testing_support::count_lines(r.err), 1) << r.err;
}

TEST_F(CheckpointDamage, InTheBackgroundOrInLineTheSameRunComesOut) {
  ASSERT_EQ(train("on").status, 0);
  const auto off = train("off", {"--checkpoint.overlap", "off", "--train.stop-after", "4"});
  ASSERT_EQ(off.status, 75) << off.err;
  EXPECT_FALSE(contains(off.out, "in the way")) << off.out;
  EXPECT_FALSE(contains(off.out, "copied for checkpoints")) << off.out;
  const auto on = train("off", {"--train.stop-after", "4"});
  ASSERT_EQ(on.status, 75) << on.err;
  EXPECT_EQ(count(on.out, " s of it in the way"), 1) << on.out;  // the last one is waited for
  EXPECT_EQ(count(on.out, "saved "), 2) << on.out;
  EXPECT_TRUE(contains(on.out, " MiB copied for checkpoints")) << on.out;
  ASSERT_EQ(train("off").status, 0);
  EXPECT_EQ(numbers("on"), numbers("off"));
  for (const int step : {2, 4, 6, 8, 10}) {
    std::vector<std::vector<std::uint64_t>> hashes;
    for (const char* run : {"on", "off"}) {
      auto& all = hashes.emplace_back();
      const io::CheckpointReader reader(checkpoint(run, step));
      for (const auto& tensor : reader.tensors())
        for (const auto& block : tensor.blocks) all.push_back(block.xxh3);
    }
    EXPECT_FALSE(hashes[0].empty());
    EXPECT_EQ(hashes[0], hashes[1]) << "step " << step;
  }
}

TEST_F(CheckpointDamage, WhereNothingCanBeSavedTrainingGoesOnAndEndsWithStatus1) {
  for (const char* overlap : {"on", "off"}) {
    const std::string run = std::string("nowhere-") + overlap;
    fs::create_directories(folder_.file(run));
    std::ofstream(folder_.file(run) + "/checkpoints") << "a file where the folder should be";
    const auto r = train(run, {"--checkpoint.overlap", overlap});
    EXPECT_EQ(r.status, 1) << r.err << r.out;
    EXPECT_EQ(numbers(run).size(), 10U);
    for (int step = 2; step <= 10; step += 2)
      EXPECT_EQ(count(r.err, fmt::format("warning: step {} was not saved: ", step)), 1) << r.err;
    EXPECT_EQ(testing_support::count_lines(r.err), 6) << r.err;
    EXPECT_TRUE(contains(r.err, "the last save failed: ")) << r.err;
    EXPECT_TRUE(contains(r.err, "/checkpoints: cannot create the folder")) << r.err;
  }
}

TEST_F(CheckpointDamage, AFullDiskLeavesTheLastGoodCheckpointAndTheRunContinuesFromThere) {
  // A shard of 19 MB does not fit into the 6 MB (or 12: some shells count in 1024 bytes) that a
  // file may have; metrics, the log and the shared memory of MPI do.
  const std::vector<std::string> larger = {"--model.width", "256", "--model.head-size", "64"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), larger.begin(), larger.end());
    return more;
  };
  ASSERT_EQ(train("whole", with({})).status, 0);
  ASSERT_EQ(train("full", with({"--train.stop-after", "2"})).status, 75);
  for (const char* overlap : {"on", "off"}) {
    std::vector<std::string> command = {
        "sh",   "-c", "ulimit -f 12288; exec \"$@\"", "sh", testing_support::longspan_path(),
        "train"};
    const auto more =
        settings("full", with({"--checkpoint.overlap", overlap, "--train.stop-after", "4"}));
    command.insert(command.end(), more.begin(), more.end());
    const auto r = testing_support::run_process(command);
    EXPECT_EQ(r.status, 1) << r.err << r.out;
    EXPECT_EQ(count(r.err, "warning: step 4 was not saved: "), 1) << r.err;
    EXPECT_EQ(count(r.err, "warning: step 6 was not saved: "), 1) << r.err;
    EXPECT_EQ(testing_support::count_lines(r.err), 3) << r.err;
    EXPECT_TRUE(contains(r.err, "File too large")) << r.err;
    EXPECT_EQ(numbers("full").size(), 6U);
    EXPECT_EQ(fs::read_symlink(folder_.file("full") + "/checkpoints/latest"), "step-0000000002");
    EXPECT_TRUE(verifies(checkpoint("full", 2)));
    EXPECT_FALSE(fs::exists(checkpoint("full", 4)));
  }
  EXPECT_EQ(train("full", with({})).status, 0);
  EXPECT_EQ(numbers("full"), numbers("whole"));
}

}  // namespace
}  // namespace longspan
