// label: slow
// timeout: 120
/// A run that goes on from a resharded checkpoint, and a conversion that is killed.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/checkpoint_index.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"

namespace longspan {
namespace {

using testing_support::longspan;
using testing_support::ProcessResult;
namespace fs = std::filesystem;

class ConvertRun : public testing::Test {
 protected:
  ProcessResult launch(const std::string& run, const std::vector<std::string>& more) {
    std::vector<std::string> all = {"launch",
                                    "--ranks",
                                    "2",
                                    "--config",
                                    LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                                    "--data.path",
                                    folder_.file("d.h5"),
                                    "--run.directory",
                                    folder_.file(run),
                                    "--data.sequence-length",
                                    "64",
                                    "--model.layers",
                                    "2",
                                    "--train.steps",
                                    "6",
                                    "--train.global-batch",
                                    "4",
                                    "--optimizer.shard",
                                    "states",
                                    "--checkpoint.every",
                                    "0"};
    all.insert(all.end(), more.begin(), more.end());
    return longspan(all);
  }
  /// As written: equal texts are equal bits.
  std::vector<std::string> losses(const std::string& run) {
    std::vector<std::string> result;
    std::ifstream lines(folder_.file(run) + "/metrics.jsonl");
    for (std::string line; std::getline(lines, line);)
      result.push_back(nlohmann::json::parse(line)["loss"].dump());
    return result;
  }
  testing_support::TemporaryDirectory folder_;
};

TEST_F(ConvertRun, ReshardedCheckpointContinuesBitForBit) {
  auto r = longspan({"prepare", "--kind", "text", "--output", folder_.file("d.h5"),
                     LONGSPAN_SOURCE_DIR "/model"});
  ASSERT_EQ(r.status, 0) << r.err;
  r = launch("whole", {});
  ASSERT_EQ(r.status, 0) << r.out << r.err;
  r = launch("half", {"--train.stop-after", "3"});
  ASSERT_EQ(r.status, 75) << r.out << r.err;
  r = longspan({"convert", folder_.file("half"), folder_.file("three"), "--shards", "3"});
  ASSERT_EQ(r.status, 0) << r.err;
  fs::remove_all(folder_.file("half"));
  r = launch("rest", {"--checkpoint.resume", folder_.file("three")});
  ASSERT_EQ(r.status, 0) << r.out << r.err;
  const auto whole = losses("whole"), rest = losses("rest");
  ASSERT_EQ(whole.size(), 6u);
  EXPECT_EQ(rest, std::vector<std::string>(whole.begin() + 3, whole.end()));

  // Killed at any moment, it leaves all or nothing under the name, and the next one tidies up.
  int killed = 0;
  for (int moment = 0; moment < 12; ++moment) {
    const std::string to = folder_.file("killed-" + std::to_string(moment));
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(1);
      ::execl(testing_support::longspan_path().c_str(), "longspan", "convert",
              folder_.file("three").c_str(), to.c_str(), "--shards", "40", nullptr);
      ::_exit(127);
    }
    ::usleep(static_cast<useconds_t>(moment) * 30000);
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    killed += WIFSIGNALED(status) ? 1 : 0;
    if (fs::exists(to)) {
      EXPECT_EQ(io::why_incomplete(to), "");
      continue;
    }
    r = longspan({"convert", folder_.file("three"), to, "--shards", "2"});
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(io::why_incomplete(to), "");
    EXPECT_FALSE(fs::exists(folder_.file(".killed-" + std::to_string(moment) + ".tmp")));
  }
  EXPECT_GT(killed, 0);
}

}  // namespace
}  // namespace longspan
