/// Trainings on the emulated GPU, each in a folder of its own, from the same small dataset.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/process.hpp"
#include "support/sample_text.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::testing_support {

class EmulatedTraining : public testing::Test {
 protected:
  void SetUp() override {
    ::setenv("LONGSPAN_CUDA_PLUGIN", LONGSPAN_BINARY_DIR "/liblongspan_cuda_emulated.so", 1);
    std::ofstream(folder_.file("a.txt")) << sample_text(60000);
    ASSERT_EQ(longspan({"prepare", "--kind", "text", "--output", folder_.file("d.h5"),
                        folder_.file("a.txt")})
                  .status,
              0);
  }
  void TearDown() override {
    for (const char* name :
         {"LONGSPAN_CUDA_PLUGIN", "LONGSPAN_CUDA_EMULATOR_BYTES", "LONGSPAN_CUDA_EMULATOR_NCCL",
          "LONGSPAN_CUDA_EMULATOR_PROTECT", "LONGSPAN_FAKE_NCCL_ERROR_FROM_CALL"})
      ::unsetenv(name);
  }
  std::vector<double> losses(const std::string& run) const {
    std::vector<double> all;
    std::ifstream lines(folder_.file(run) + "/metrics.jsonl");
    for (std::string line; std::getline(lines, line);)
      all.push_back(nlohmann::json::parse(line)["loss"]);
    return all;
  }
  std::string log_of(const std::string& run) const {
    std::ifstream file(folder_.file(run) + "/log.txt");
    return {std::istreambuf_iterator<char>(file), {}};
  }

  TemporaryDirectory folder_;
};

}  // namespace longspan::testing_support
