/// metrics.jsonl: the keys, what a resumed run keeps, what a full disk does; and the table for
/// people.
#include "launcher/metrics.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "parallel/error.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

namespace fs = std::filesystem;

StepMetrics metrics(std::int64_t step) {
  StepMetrics m;
  m.step = step;
  m.tokens = step * 100;
  m.loss = 1.0 / 3.0;
  m.grad_norm = 0.1;
  m.learning_rate = 3e-4;
  m.step_seconds = 2;
  m.tokens_per_second = 50;
  m.mfu = 0.5;
  m.comm_seconds = 0.25;
  m.data_seconds = 0.125;
  m.peak_memory_bytes = std::int64_t{3} << 30;
  return m;
}

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::int64_t> steps_in(const std::string& path) {
  std::vector<std::int64_t> steps;
  std::istringstream lines(read(path));
  for (std::string line; std::getline(lines, line);)
    steps.push_back(nlohmann::json::parse(line)["step"]);
  return steps;
}

class Metrics : public testing::Test {
 protected:
  testing_support::TemporaryDirectory directory_;
  std::string path_ = directory_.file("metrics.jsonl");
};

TEST_F(Metrics, ALineHasExactlyTheKeysThatScriptsRead) {
  const auto keys = [](const StepMetrics& m) {
    const auto object = nlohmann::ordered_json::parse(to_json(m));
    std::string all;
    for (const auto& [key, value] : object.items()) all += key + " ";
    return all;
  };
  const std::string usual =
      "step tokens loss grad_norm learning_rate step_seconds tokens_per_second mfu comm_seconds "
      "data_seconds peak_memory_bytes hfu ";
  StepMetrics m = metrics(3);
  EXPECT_EQ(keys(m), usual);
  m.validation_loss = 2.5;
  EXPECT_EQ(keys(m), usual + "validation_loss ");
  m.gpu_power_watts = 500.0;
  EXPECT_EQ(keys(m), usual + "validation_loss gpu_power_watts ");
  const auto back = nlohmann::json::parse(to_json(m));
  EXPECT_EQ(back["loss"].get<double>(), 1.0 / 3.0);
  EXPECT_EQ(back["tokens"].get<std::int64_t>(), 300);
  EXPECT_EQ(back["peak_memory_bytes"].get<std::int64_t>(), std::int64_t{3} << 30);
  EXPECT_EQ(to_json(m).find('\n'), std::string::npos);
}

TEST_F(Metrics, WhatIsNotANumberStaysJson) {
  StepMetrics m = metrics(1);
  m.loss = std::numeric_limits<double>::quiet_NaN();
  m.grad_norm = std::numeric_limits<double>::infinity();
  const auto back = nlohmann::json::parse(to_json(m));
  EXPECT_TRUE(back["loss"].is_null());
  EXPECT_TRUE(back["grad_norm"].is_null());
}

TEST_F(Metrics, EveryLineIsInTheFileAtOnce) {
  MetricsWriter writer(path_, 0);
  for (int step = 1; step <= 3; ++step) {
    writer.write(metrics(step));
    EXPECT_EQ(steps_in(path_).size(), static_cast<std::size_t>(step));
    EXPECT_EQ(read(path_).back(), '\n');
  }
}

TEST_F(Metrics, AResumedRunDropsWhatItWillComputeAgain) {
  {
    MetricsWriter writer(path_, 0);
    for (int step = 1; step <= 6; ++step) writer.write(metrics(step));
  }
  std::ofstream(path_, std::ios::app) << R"({"step":7,"los)";  // cut short by a crash
  MetricsWriter writer(path_, 4);
  EXPECT_EQ(steps_in(path_), (std::vector<std::int64_t>{1, 2, 3, 4}));
  writer.write(metrics(5));
  EXPECT_EQ(steps_in(path_), (std::vector<std::int64_t>{1, 2, 3, 4, 5}));
  EXPECT_FALSE(fs::exists(path_ + ".new"));
}

TEST_F(Metrics, WhatIsKeptIsNotTouched) {
  {
    MetricsWriter writer(path_, 0);
    for (int step = 1; step <= 3; ++step) writer.write(metrics(step));
  }
  const std::string before = read(path_);
  struct stat first = {}, second = {};
  ASSERT_EQ(::stat(path_.c_str(), &first), 0);
  { MetricsWriter writer(path_, 3); }
  ASSERT_EQ(::stat(path_.c_str(), &second), 0);
  EXPECT_EQ(first.st_ino, second.st_ino);  // nothing to drop: not rewritten
  { MetricsWriter writer(path_, 2); }
  EXPECT_EQ(read(path_), before.substr(0, before.find(R"({"step":3)")));  // the same bytes
}

TEST_F(Metrics, ANewRunInAnOldFolderBeginsAnew) {
  std::ofstream(path_) << "no json\n{\"step\":\"x\"}\n[1]\n{\"step\":1}\n";
  MetricsWriter writer(path_, 0);
  EXPECT_EQ(read(path_), "");
}

TEST_F(Metrics, ErrorsNameTheFile) {
  const std::string nowhere = directory_.file("none/metrics.jsonl");
  try {
    MetricsWriter writer(nowhere, 0);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(nowhere), std::string::npos) << e.what();
  }
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  MetricsWriter writer("/dev/full", 0);
  try {
    writer.write(metrics(1));
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("/dev/full"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("No space left"), std::string::npos) << e.what();
  }
}

TEST_F(Metrics, TheValidationLossesOfTheKeptLinesAreRemembered) {
  {
    MetricsWriter writer(path_, 0);
    EXPECT_TRUE(writer.validation_losses().empty());
    for (std::int64_t step = 1; step <= 4; ++step) {
      StepMetrics m = metrics(step);
      if (step != 2) m.validation_loss = 1.0 / static_cast<double>(step);
      writer.write(m);
    }
  }
  EXPECT_EQ(MetricsWriter(path_, 3).validation_losses(), (std::vector<double>{1.0, 1.0 / 3.0}));
}

TEST_F(Metrics, WhatAFullDiskDidNotTakeFollowsWhenThereIsRoomAgain) {
  MetricsWriter writer(path_, 0);
  writer.write(metrics(1));
  const auto full = fs::file_size(path_) + 40;  // in the middle of the next line
  struct rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  struct rlimit limit = before;
  limit.rlim_cur = full;
  const auto old = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_THROW(writer.write(metrics(2)), Error);
  EXPECT_THROW(writer.write(metrics(3)), Error);
  EXPECT_THROW(writer.flush(), Error);
  EXPECT_EQ(fs::file_size(path_), full);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, old);
  writer.write(metrics(4));
  EXPECT_EQ(steps_in(path_), (std::vector<std::int64_t>{1, 2, 3, 4}));
}

TEST(MetricsTable, TheHeaderComesOnceAndColumnsAlign) {
  MetricsTable table(100000);
  const std::string first = table.row(metrics(1));
  const std::size_t newline = first.find('\n');
  ASSERT_NE(newline, std::string::npos);
  const std::string header = first.substr(0, newline), row = first.substr(newline + 1);
  for (const char* column :
       {"step", "loss", "grad norm", "rate", "tokens/s", "MFU %", "memory", "time left"})
    EXPECT_NE(header.find(column), std::string::npos) << column;
  EXPECT_EQ(row.size(), header.size());
  for (const char* value : {" 0.3333 ", " 0.1 ", " 0.0003 ", " 50 ", " 50.0 ", " 3.00 GiB "})
    EXPECT_NE(row.find(value), std::string::npos) << value << "\n" << row;
  StepMetrics late = metrics(99999);
  late.loss = 11.5, late.grad_norm = 12345.678, late.tokens_per_second = 1234567,
  late.peak_memory_bytes = 700 << 20;
  const std::string second = table.row(late);
  EXPECT_EQ(second.find('\n'), std::string::npos);
  EXPECT_EQ(second.size(), header.size()) << second;
  EXPECT_NE(second.find("700 MiB"), std::string::npos) << second;
  late.validation_loss = 1.25;
  EXPECT_NE(table.row(late).find("validation 1.2500"), std::string::npos);
}

TEST(MetricsTable, TheTimeLeftForgetsTheSlowFirstStep) {
  MetricsTable table(1001);
  StepMetrics m = metrics(1);
  m.step_seconds = 100;
  EXPECT_NE(table.row(m).find(" 27:46:40"), std::string::npos);  // 1000 * 100 s
  m = metrics(2);
  m.step_seconds = 1;
  EXPECT_NE(table.row(m).find(" 16:39"), std::string::npos);  // 999 * 1 s
  m = metrics(991);
  m.step_seconds = 2;
  EXPECT_NE(table.row(m).find(" 11 s"), std::string::npos);  // 10 * 1.1 s
  m = metrics(1001);
  EXPECT_NE(table.row(m).find(" 0 s"), std::string::npos);
}

}  // namespace
}  // namespace longspan::launcher
