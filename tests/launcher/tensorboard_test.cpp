// timeout: 120
/// TensorBoard event files: read back by tensorboard_read.py, which was written from the format's
/// description and checks every checksum.
#include "launcher/tensorboard.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/process.hpp"
#include "support/sample_text.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing_support::longspan;
using testing_support::run_process;

testing_support::ProcessResult read_back(const std::vector<std::string>& files) {
  std::vector<std::string> command = {"python3",
                                      LONGSPAN_SOURCE_DIR "/tests/launcher/tensorboard_read.py"};
  command.insert(command.end(), files.begin(), files.end());
  return run_process(command);
}

std::vector<std::string> files_of(const std::string& folder) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  return files;
}

StepMetrics metrics_of(std::int64_t step) {
  StepMetrics m;
  m.step = step;
  m.tokens = 1000 * step;
  m.loss = 1.0 / static_cast<double>(step);
  m.tokens_per_second = 12345.678;
  m.peak_memory_bytes = std::int64_t{5} << 30;
  if (step % 2 == 0) m.validation_loss = 0.5 + m.loss;
  return m;
}

TEST(TensorBoard, ChecksumsAreThoseOfTheStandard) {
  // RFC 3720, B.4.
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aaU);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43U);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283U);
}

TEST(TensorBoard, WhatWasWrittenIsReadBack) {
  const testing_support::TemporaryDirectory folder;
  EventFile file(folder.file("tensorboard"), 0);
  for (std::int64_t step = 1; step <= 300; ++step) file.add(metrics_of(step));
  const auto result = read_back({file.path()});
  ASSERT_EQ(result.status, 0) << result.err;
  const json events = json::parse(result.out);
  ASSERT_EQ(events.size(), 302u);
  EXPECT_EQ(events[0]["version"], "brain.Event:2");
  EXPECT_EQ(events[1]["session"], 1) << "START";
  EXPECT_EQ(events[1]["step"], 1);
  for (std::int64_t step = 1; step <= 300; ++step) {
    const json& event = events[static_cast<std::size_t>(step) + 1];
    const StepMetrics m = metrics_of(step);
    EXPECT_EQ(event["step"], step) << "steps of one and of two bytes";
    EXPECT_EQ(event["scalars"]["loss/train"], static_cast<double>(static_cast<float>(m.loss)));
    EXPECT_EQ(event["scalars"]["memory/peak_bytes"], 5368709120.0);
    EXPECT_EQ(event["scalars"].contains("loss/validation"), step % 2 == 0);
    EXPECT_GE(event["wall_time"].get<double>(), events[0]["wall_time"].get<double>());
  }
}

TEST(TensorBoard, TheReaderSeesDamage) {
  const testing_support::TemporaryDirectory folder;
  EventFile file(folder.path(), 0);
  file.add(metrics_of(1));
  std::fstream bytes(file.path(), std::ios::in | std::ios::out | std::ios::binary);
  bytes.seekp(-20, std::ios::end);
  bytes.put('!');
  bytes.close();
  const auto result = read_back({file.path()});
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("stored checksum"), std::string::npos) << result.err;
}

TEST(TensorBoard, ARunAndItsContinuationAreOneCurve) {
  const testing_support::TemporaryDirectory folder;
  std::ofstream(folder.file("text")) << testing_support::sample_text(100000);
  const std::string data = folder.file("d.h5"), run = folder.file("run");
  ASSERT_EQ(longspan({"prepare", "--kind", "text", "--output", data, folder.file("text")}).status,
            0);
  const auto train = [&](const std::string& stop_after, const std::string& on) {
    return longspan({"launch", "--ranks", "2", "--config", LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                     "--data.path", data, "--run.directory", run, "--run.threads", "1",
                     "--train.steps", "6", "--train.stop-after", stop_after, "--log.tensorboard",
                     on});
  };
  ASSERT_EQ(train("2", "off").status, 75);
  EXPECT_FALSE(fs::exists(run + "/tensorboard"));
  ASSERT_EQ(train("2", "on").status, 75);
  ASSERT_EQ(train("0", "on").status, 0);

  const auto files = files_of(run + "/tensorboard");
  ASSERT_EQ(files.size(), 2u) << "rank 0 alone writes, a file for each start";
  const auto result = read_back(files);
  ASSERT_EQ(result.status, 0) << result.err;
  std::ifstream lines(run + "/metrics.jsonl");
  std::string line;
  std::getline(lines, line), std::getline(lines, line);  // not written: it was off
  std::vector<std::int64_t> starts;
  for (const json& event : json::parse(result.out)) {
    if (event.contains("session")) starts.push_back(event["step"].get<std::int64_t>());
    if (!event.contains("scalars")) continue;
    ASSERT_TRUE(std::getline(lines, line));
    const json expected = json::parse(line);
    EXPECT_EQ(event["step"], expected["step"]);
    EXPECT_EQ(event["scalars"]["loss/train"].get<double>(),
              static_cast<double>(expected["loss"].get<float>()));
  }
  EXPECT_FALSE(std::getline(lines, line)) << "a step is missing: " << line;
  EXPECT_EQ(starts, (std::vector<std::int64_t>{3, 5}));
}

}  // namespace
}  // namespace longspan::launcher
