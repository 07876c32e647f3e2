/// The run directory: one run at a time, and a config.ini that is always whole.
#include "launcher/run_directory.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <thread>

#include "launcher/options.hpp"
#include "parallel/error.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string error_of(const std::string& path, const io::Attempt& attempt = this_attempt()) {
  try {
    const RunDirectory directory(path, attempt, 0ms);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

class RunDirectoryTest : public testing::Test {
 protected:
  testing_support::TemporaryDirectory folder_;
  std::string path_ = folder_.file("deep/run");
};

TEST_F(RunDirectoryTest, ASecondHolderIsRefusedByName) {
  std::optional<RunDirectory> first(std::in_place, path_);
  const std::string error = error_of(path_);
  EXPECT_NE(error.find(path_), std::string::npos) << error;
  EXPECT_NE(error.find("process " + std::to_string(getpid()) + " on "), std::string::npos) << error;
  EXPECT_EQ(error_of(folder_.file("deep/other")), "");
  first.reset();
  EXPECT_EQ(error_of(path_), "");
}

TEST_F(RunDirectoryTest, ARunThatIsJustEndingIsWaitedFor) {
  std::optional<RunDirectory> first(std::in_place, path_);
  std::thread ending([&] {
    std::this_thread::sleep_for(100ms);
    first.reset();
  });
  EXPECT_NO_THROW(RunDirectory(path_, this_attempt(), 10s));
  ending.join();
}

TEST_F(RunDirectoryTest, TheConfigurationReadsBackAndSurvivesAFailedWrite) {
  const RunDirectory directory(path_);
  RunConfig config;
  config.model.width = 96;
  directory.write_config(config, "a comment");
  const std::string text = read(path_ + "/config.ini");
  EXPECT_EQ(text.rfind("# a comment\n", 0), 0u);
  EXPECT_EQ(parse_ini(text).model.width, 96);
  // Something that cannot be written stands where the new file is made.
  fs::create_directory(path_ + "/config.ini.new");
  fs::create_directory(path_ + "/config.ini.new/full");
  config.model.width = 128;
  EXPECT_THROW(directory.write_config(config, "another"), Error);
  EXPECT_EQ(read(path_ + "/config.ini"), text);
}

TEST_F(RunDirectoryTest, WhatCannotBeMadeNamesThePathAndTheWayOut) {
  const std::string file = folder_.file("file");
  std::ofstream(file).put('x');
  for (const std::string& path : {file, file + "/below", std::string("/proc/nothing")}) {
    const std::string error = error_of(path);
    EXPECT_NE(error.find(path), std::string::npos) << error;
    EXPECT_NE(error.find("set run.directory to a place you may write to"), std::string::npos)
        << error;
  }
}

}  // namespace
}  // namespace longspan::launcher
