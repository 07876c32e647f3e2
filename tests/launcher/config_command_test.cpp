/// `longspan config`: the table, and the effective configuration as something a run reads back.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launcher/command.hpp"
#include "launcher/options.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

std::string printed(const std::vector<std::string>& arguments) {
  testing::internal::CaptureStdout();
  EXPECT_EQ(config_command(arguments), ExitStatus::kDone);
  std::fflush(stdout);
  return testing::internal::GetCapturedStdout();
}

TEST(ConfigCommand, TheTableHasEverySettingAndFitsTheTerminal) {
  for (const int columns : {90, 140}) {
    ::setenv("COLUMNS", std::to_string(columns).c_str(), 1);
    const std::string text = printed({});
    for (const auto& o : describe_options())
      EXPECT_NE(text.find("  " + o.name + " "), std::string::npos) << o.name;
    for (const char* section : {"\n[run]\n", "\n[optimizer]\n", "\n[log]\n"})
      EXPECT_NE(text.find(section), std::string::npos) << section;
    EXPECT_NE(text.find("gelu|swiglu"), std::string::npos);
    std::istringstream lines(text.substr(0, text.find("\nOn the command line")));
    for (std::string line; std::getline(lines, line);) {
      EXPECT_LE(line.size(), static_cast<std::size_t>(columns)) << line;
      EXPECT_TRUE(line.empty() || line.back() != ' ') << line;
    }
  }
  ::unsetenv("COLUMNS");
}

TEST(ConfigCommand, TheEffectiveConfigurationReadsBackAndMarksWhatDiffers) {
  const testing_support::TemporaryDirectory directory;
  const std::string path = directory.file("run.ini");
  std::ofstream(path) << "[model]\nlayers = 2\nmlp = gelu\n[data]\npath = \"a #b\"\n";
  const std::string text = printed({"--config", path, "--train.steps", "50"});
  EXPECT_NE(text.find("\nlayers = 2 "), std::string::npos);
  EXPECT_NE(text.find("# default: 4\n"), std::string::npos);
  EXPECT_NE(text.find("# default: swiglu\n"), std::string::npos);
  EXPECT_NE(text.find("# default: empty\n"), std::string::npos);
  EXPECT_NE(text.find("\nwidth = 256\n"), std::string::npos);
  EXPECT_EQ(to_ini(parse_ini(text)), to_ini(parse_config(path, {"--train.steps", "50"})));
  // Settings alone will do.
  EXPECT_NE(printed({"--train.steps=50"}).find("\nsteps = 50 "), std::string::npos);
}

TEST(ConfigCommand, JsonHasTypes) {
  const auto table = nlohmann::json::parse(printed({"--json"}));
  ASSERT_EQ(table.size(), describe_options().size());
  for (const auto& o : table)
    for (const char* key : {"name", "unit", "values", "default", "help"})
      EXPECT_TRUE(o.contains(key)) << key << o;
  const auto layers = std::find_if(table.begin(), table.end(),
                                   [](const auto& o) { return o["name"] == "model.layers"; });
  ASSERT_NE(layers, table.end());
  EXPECT_EQ((*layers)["default"], 4);

  const auto effective =
      nlohmann::json::parse(printed({"--json", "--model.bias", "on", "--run.name", "12"}));
  EXPECT_EQ(effective["model"]["bias"], true);
  EXPECT_EQ(effective["run"]["name"], "12");
  EXPECT_EQ(effective["optimizer"]["learning-rate"], 3e-4);
  EXPECT_EQ(effective["data"]["sequence-length"], 1024);
}

}  // namespace
}  // namespace longspan::launcher
