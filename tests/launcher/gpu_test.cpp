// The GPU plug-in from outside: what is missing or wrong is one readable line, and with the
// emulated plug-in a run trains. label: slow timeout: 180
#include "launcher/gpu.hpp"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "parallel/error.hpp"
#include "support/process.hpp"
#include "support/sample_text.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using testing_support::longspan;
using testing_support::ProcessResult;

const std::string kEmulated = LONGSPAN_BINARY_DIR "/liblongspan_cuda_emulated.so";
const std::string kPlugins = LONGSPAN_BINARY_DIR "/plugins/";

/// Variables of the environment, for the time of a test.
class Environment {
 public:
  explicit Environment(const std::map<std::string, std::string>& values) : values_(values) {
    for (const auto& [name, value] : values_) ::setenv(name.c_str(), value.c_str(), 1);
  }
  ~Environment() {
    for (const auto& [name, value] : values_) ::unsetenv(name.c_str());
  }

 private:
  std::map<std::string, std::string> values_;
};

class Gpu : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(folder_.file("a.txt")) << testing_support::sample_text(60000);
    ASSERT_EQ(longspan({"prepare", "--kind", "text", "--output", folder_.file("d.h5"),
                        folder_.file("a.txt")})
                  .status,
              0);
  }
  ProcessResult train(const std::string& device, const std::string& run, int ranks = 1,
                      const std::string& settings = "") const {
    return longspan(testing_support::launch_tiny(
        ranks, folder_.file("d.h5"), folder_.file(run),
        "--train.steps 3 --train.validate-every 0 --checkpoint.every 0 --run.device " + device +
            (settings.empty() ? "" : " " + settings)));
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
  testing_support::TemporaryDirectory folder_;
};

/// One line that has `text`, and that status.
void expect_refused(const ProcessResult& result, int status, const std::string& text) {
  EXPECT_EQ(result.status, status) << result.out << result.err;
  EXPECT_NE(result.err.find(text), std::string::npos) << result.err;
  std::size_t lines = 0;
  for (std::size_t at = 0; (at = result.err.find("run.device=cuda:", at)) != std::string::npos;
       ++at)
    ++lines;
  EXPECT_EQ(lines, 1u) << result.err;
}

TEST_F(Gpu, WhatIsWrongWithThePluginIsOneLine) {
  struct Case {
    std::map<std::string, std::string> environment;
    int status;
    std::string text;
  };
  const std::string gone = folder_.file("gone.so"), text_file = folder_.file("a.txt");
  const std::vector<Case> cases = {
      {{{"LONGSPAN_CUDA_PLUGIN", gone}}, 2, "there is no GPU plug-in " + gone},
      {{{"LONGSPAN_CUDA_PLUGIN", text_file}}, 1, "cannot be loaded: "},
      {{{"LONGSPAN_CUDA_PLUGIN", kPlugins + "missing_symbol.so"}},
       1,
       "undefined symbol: a_function_that_no_library_has"},
      {{{"LONGSPAN_CUDA_PLUGIN", kPlugins + "no_entry.so"}},
       1,
       "is not a GPU plug-in: it has no longspan_cuda_open"},
      {{{"LONGSPAN_CUDA_PLUGIN", kPlugins + "other_build.so"}},
       1,
       "belongs to another build (its interface is 0.0.9-another, this program's is 0.1.0-"},
      {{{"LONGSPAN_CUDA_PLUGIN", kEmulated},
        {"LONGSPAN_CUDA_EMULATOR_ERROR", "35"},
        {"LONGSPAN_CUDA_EMULATOR_DRIVER", "0"}},
       1,
       "no GPU driver here (CUDA: CUDA driver version is insufficient for CUDA runtime version)"},
      {{{"LONGSPAN_CUDA_PLUGIN", kEmulated},
        {"LONGSPAN_CUDA_EMULATOR_ERROR", "35"},
        {"LONGSPAN_CUDA_EMULATOR_DRIVER", "12020"}},
       1,
       "the GPU driver offers CUDA 12.2, this build needs 13.0"},
      {{{"LONGSPAN_CUDA_PLUGIN", kEmulated}, {"LONGSPAN_CUDA_EMULATOR_ERROR", "100"}},
       1,
       "no GPU here (CUDA: no CUDA-capable device is detected)"},
      {{{"LONGSPAN_CUDA_PLUGIN", kEmulated}, {"LONGSPAN_CUDA_EMULATOR_CAPABILITY", "75"}},
       1,
       "GPU 0 (CUDA emulator) has compute capability 7.5, the kernels need 8.0"},
  };
  for (const Case& one : cases) {
    const Environment environment(one.environment);
    expect_refused(train("cuda", "refused"), one.status, one.text);
  }
}

TEST_F(Gpu, WithoutAPluginFileCudaIsRefusedAndAutoSaysWhy) {
  // The program alone in a folder of its own, where no plug-in lies beside it.
  const std::string program = folder_.file("longspan");
  std::filesystem::copy_file(testing_support::longspan_path(), program);
  const auto run = [&](const std::string& device, const std::string& name) {
    return testing_support::run_process(
        {program, "train", "--config", LONGSPAN_SOURCE_DIR "/configs/tiny.ini", "--data.path",
         folder_.file("d.h5"), "--run.directory", folder_.file(name), "--data.sequence-length",
         "64", "--train.steps", "1", "--run.device", device});
  };
  expect_refused(run("cuda", "a"), 2,
                 "there is no GPU plug-in: liblongspan_cuda.so is neither beside the program nor");
  const ProcessResult fallback = run("auto", "b");
  EXPECT_EQ(fallback.status, 0) << fallback.err;
  EXPECT_NE(log_of("b").find("device: cpu (run.device=auto: "), std::string::npos) << log_of("b");
}

TEST_F(Gpu, AutoFallsBackOnAllRanksAndSaysWhy) {
  const Environment environment(
      {{"LONGSPAN_CUDA_PLUGIN", kEmulated}, {"LONGSPAN_CUDA_EMULATOR_ERROR", "100"}});
  const ProcessResult result = train("auto", "auto", 2, "--mesh.context 2");
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(log_of("auto").find("device: cpu (run.device=auto: no GPU here (CUDA: "),
            std::string::npos)
      << log_of("auto");
}

TEST_F(Gpu, TrainsOnTheEmulatorAsOnTheCpu) {
  ASSERT_EQ(train("cpu", "cpu").status, 0);
  const Environment environment({{"LONGSPAN_CUDA_PLUGIN", kEmulated}});
  const ProcessResult result = train("cuda", "cuda");
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_NE(log_of("cuda").find("device: CUDA emulator, "), std::string::npos) << log_of("cuda");
  const std::vector<double> on_cpu = losses("cpu"), on_gpu = losses("cuda");
  ASSERT_EQ(on_cpu.size(), 3u);
  ASSERT_EQ(on_gpu.size(), 3u);
  for (std::size_t i = 0; i < on_cpu.size(); ++i)
    EXPECT_NEAR(on_gpu[i], on_cpu[i], 1e-5 * on_cpu[i]) << i;
}

TEST_F(Gpu, TwoRanksNeedTwoGpusOrTheLeaveToShare) {
  Environment plugin({{"LONGSPAN_CUDA_PLUGIN", kEmulated}});
  expect_refused(train("cuda", "a", 2, "--mesh.context 2"), 2,
                 "2 ranks on this node but 1 GPU for them: start at most 1 here, or set "
                 "run.share-gpu=on");
  const ProcessResult shared = train("cuda", "b", 2, "--mesh.context 2 --run.share-gpu on");
  EXPECT_EQ(shared.status, 0) << shared.err;
  const Environment two(
      {{"LONGSPAN_CUDA_PLUGIN", kEmulated}, {"LONGSPAN_CUDA_EMULATOR_DEVICES", "2"}});
  const ProcessResult own = train("cuda", "c", 2, "--mesh.context 2");
  EXPECT_EQ(own.status, 0) << own.err;
  EXPECT_EQ(losses("b").size(), 3u);
  EXPECT_EQ(losses("b"), losses("c"));
}

TEST_F(Gpu, UsePowerAndEnergyAreInTheMetricsAndNeverZeroWhereTheyAreNotTold) {
  const Environment environment({{"LONGSPAN_CUDA_PLUGIN", kEmulated},
                                 {"LD_LIBRARY_PATH", LONGSPAN_BINARY_DIR "/plugins/nvml"}});
  ASSERT_EQ(train("cuda", "told", 1, "--train.steps 20").status, 0);
  std::ifstream lines(folder_.file("told") + "/metrics.jsonl");
  nlohmann::json last;
  double seconds = 0;
  for (std::string line; std::getline(lines, line);) {
    last = nlohmann::json::parse(line);
    seconds += last["step_seconds"].get<double>();
  }
  EXPECT_EQ(last["gpu_utilisation"], 0.87);
  EXPECT_EQ(last["gpu_power_watts"], 500.0);
  EXPECT_EQ(last["gpu_memory_bytes"], std::int64_t{12} << 30);
  EXPECT_GE(last["hfu"], last["mfu"]);
  const std::string log = log_of("told");
  EXPECT_NE(log.find("GPUs: 87 % busy, 500 W, "), std::string::npos) << log;
  EXPECT_NE(log.find("12.0 GiB used at the end"), std::string::npos) << log;
  EXPECT_NE(log.find("HFU "), std::string::npos) << log;

  const Environment silent(
      {{"FAKE_NVML_MISSING", "energy power"}, {"LONGSPAN_CUDA_PLUGIN", kEmulated}});
  ASSERT_EQ(train("cuda", "silent").status, 0);
  EXPECT_NE(log_of("silent").find("GPUs: 87 % busy, n/a, n/a (n/a), 12.0 GiB"), std::string::npos)
      << log_of("silent");
  std::ifstream file(folder_.file("silent") + "/metrics.jsonl");
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(line.find("gpu_power_watts"), std::string::npos) << line;
  EXPECT_EQ(line.find("joules_per_token"), std::string::npos) << line;
}

TEST_F(Gpu, WithoutTheDriversLibraryPowerIsNotKnown) {
  const Environment environment({{"LONGSPAN_CUDA_PLUGIN", kEmulated}});
  ASSERT_EQ(train("cuda", "none").status, 0);
  EXPECT_NE(log_of("none").find("GPUs: use, power and energy n/a (libnvidia-ml.so.1 of the GPU "
                                "driver is not here)"),
            std::string::npos)
      << log_of("none");
}

TEST_F(Gpu, DoctorShowsThePluginAndWhatItFound) {
  const auto gpu_rows = [] {
    const ProcessResult result = longspan({"doctor", "--json"});
    std::string rows;
    const auto json = nlohmann::json::parse(result.out);
    for (const auto& finding : json["findings"])
      if (finding["topic"] == "GPU")
        rows += finding["subject"].get<std::string>() + ": " + finding["found"].get<std::string>() +
                "\n";
    return rows;
  };
  {
    const Environment environment({{"LONGSPAN_CUDA_PLUGIN", kEmulated}});
    const std::string rows = gpu_rows();
    EXPECT_NE(rows.find("plug-in: " + kEmulated + ", CUDA 13.0 (emulated)"), std::string::npos)
        << rows;
    EXPECT_NE(rows.find("device 0: CUDA emulator, 4.0 GiB, compute capability 8.0"),
              std::string::npos)
        << rows;
  }
  const Environment environment({{"LONGSPAN_CUDA_PLUGIN", kPlugins + "other_build.so"}});
  EXPECT_NE(gpu_rows().find("belongs to another build"), std::string::npos);
}

TEST(GpuChoice, RanksTakeTheGpusInTurn) {
  EXPECT_EQ(gpu_of(0, 4), 0);
  EXPECT_EQ(gpu_of(3, 4), 3);
  EXPECT_EQ(gpu_of(5, 4), 1);
}

TEST(GpuChoice, WhatCountsIsTheGpuNotItsNumber) {
  // Slurm may show every rank one GPU, number 0, and each another one.
  EXPECT_NO_THROW(check_gpu_is_own({11, 22, 33, 44}, 1, false));
  EXPECT_NO_THROW(check_gpu_is_own({11, 11}, 1, true));
  try {
    check_gpu_is_own({11, 22, 11}, 2, false);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), ExitStatus::kUsage);
    EXPECT_STREQ(error.what(),
                 "3 ranks on this node but 2 GPUs for them: start at most 2 here, or set "
                 "run.share-gpu=on (ranks compute on one GPU in turns: for tests)");
  }
}

}  // namespace
}  // namespace longspan::launcher
