// configs/gpu: each fits the GPU that its file speaks of, with the memory that it says.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>
#include <string>

#include "support/process.hpp"

namespace longspan {
namespace {

namespace fs = std::filesystem;

TEST(GpuConfigs, FitTheGpuTheySpeakOf) {
  int files = 0, of_80_gb = 0;
  for (const fs::directory_entry& entry :
       fs::directory_iterator(LONGSPAN_SOURCE_DIR "/configs/gpu")) {
    SCOPED_TRACE(entry.path().filename().string());
    std::stringstream text;
    text << std::ifstream(entry.path()).rdbuf();
    std::smatch said;
    const std::string words = text.str();
    ASSERT_TRUE(std::regex_search(words, said, std::regex("Needs ([0-9]+) GB of GPU memory")));
    const bool large = words.find("(an H200)") != std::string::npos;
    const testing_support::ProcessResult plan =
        testing_support::longspan({"plan", "--config", entry.path().string(), "--machine",
                                   std::string(LONGSPAN_SOURCE_DIR "/configs/machines/") +
                                       (large ? "h200-ndr.ini" : "h100-ndr.ini"),
                                   "--nodes", "1", "--ranks-per-node", "1", "--json"});
    ASSERT_EQ(plan.status, 0) << plan.err;
    const double bytes = nlohmann::json::parse(plan.out).at("memory_per_rank_bytes");
    EXPECT_LE(std::abs(bytes * 1e-9 - std::stod(said[1])), 1.0) << bytes;
    ++files, of_80_gb += !large;
  }
  EXPECT_EQ(files, 5);
  EXPECT_EQ(of_80_gb, 4);
}

}  // namespace
}  // namespace longspan
