// timeout: 120
/// log.profile: operations are passed on with the same bits, FLOPs are those of the formulas, and
/// the table adds up to the step.
#include "launcher/profile.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "support/faults.hpp"
#include "support/process.hpp"
#include "support/sample_text.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

using testing_support::longspan;

const model::OperationTotals* find(const StepProfile& profile, const std::string& name) {
  for (const auto& o : profile.operations)
    if (o.name == name) return &o;
  return nullptr;
}

TEST(Profile, CountsWhatItPassesOn) {
  const model::Backend cpu = model::cpu_backend();
  model::ProfiledKernels profiled(cpu);
  StepProfiler profiler(&profiled);
  std::vector<float> a(6, 2.0f), b(12, 3.0f), c(8, 0.0f);
  model::GemmArgs args;
  args.m = 2, args.n = 4, args.k = 3, args.lda = 3, args.ldb = 4, args.ldc = 4;
  args.a = a.data(), args.b = b.data(), args.c = c.data();
  for (int step = 0; step < 3; ++step) {
    profiled.gemm(args, cpu.stream);  // between steps: does not count
    profiler.begin_step();
    profiled.gemm(args, cpu.stream);
    profiled.gemm(args, cpu.stream);
    profiler.end_step(1.0, 0.25, 0.125);
  }
  EXPECT_EQ(c, std::vector<float>(8, 18.0f));
  const StepProfile profile = profiler.result(1e9);
  EXPECT_EQ(profile.steps, 2);  // the first one warms up
  EXPECT_EQ(profile.seconds, 2.0);
  EXPECT_EQ(profile.communication_seconds, 0.5);
  const auto* gemm = find(profile, "matrix product 2 x 4 x 3");
  ASSERT_NE(gemm, nullptr);
  EXPECT_EQ(gemm->calls, 4);
  EXPECT_EQ(gemm->flops, 4 * 2.0 * 2 * 4 * 3);
  EXPECT_EQ(gemm->bytes, 4 * 4.0 * (6 + 12 + 8));
  EXPECT_NEAR(other_seconds(profile), 2.0 - 0.5 - 0.25 - gemm->seconds, 1e-12);
  EXPECT_FALSE(StepProfiler(nullptr).on());
}

/// A backend that may fuse GELU into the product is watched as a whole, another in its parts: the
/// planner's calibration tells products from what is bound by memory.
TEST(Profile, AProductWithGeluIsWatchedAsTheBackendDoesIt) {
  class Fusing : public testing_support::FaultyKernels {
   public:
    bool fuses_products() const override { return true; }
  } fusing;
  const model::Backend cpu = model::cpu_backend();
  for (const bool fuses : {false, true}) {
    model::ProfiledKernels profiled({cpu.device, fuses ? fusing : cpu.kernels, cpu.stream});
    std::vector<float> a(6, 0.5f), b(12, 0.25f), c(8), y(8);
    model::GemmArgs args;
    args.m = 2, args.n = 4, args.k = 3, args.lda = 3, args.ldb = 4, args.ldc = 4;
    args.a = a.data(), args.b = b.data(), args.c = c.data();
    profiled.gemm_gelu_forward({args, y.data(), nullptr, nullptr}, cpu.stream);
    profiled.gemm_gelu_backward({args, y.data(), nullptr}, cpu.stream);
    std::set<std::string> names;
    for (const model::OperationTotals& one : profiled.totals()) names.insert(one.name);
    const std::set<std::string> parts = {"matrix product 2 x 4 x 3", "GELU forward",
                                         "GELU backward"},
                                whole = {"matrix product 2 x 4 x 3 and GELU",
                                         "matrix product 2 x 4 x 3 and GELU backward"};
    EXPECT_EQ(names, fuses ? whole : parts);
    for (const float value : y) EXPECT_NEAR(value, 0.242, 1e-3);  // gelu(0.375)
  }
}

TEST(Profile, TheTableShowsSharesOfStepAndPeak) {
  StepProfile profile;
  profile.steps = 2, profile.seconds = 2, profile.peak_flops = 100e9;
  profile.communication_seconds = 0.1;
  profile.operations = {{"matrix product 8 x 8 x 8", 4, 1.0, 80e9, 10e9},
                        {"add", 2, 0.5, 0, 5e9},
                        {"tiny", 2, 1e-4, 0, 1},
                        {"tinier", 2, 1e-4, 0, 1}};
  const std::string text = profile_text(profile);
  EXPECT_NE(text.find("mean of 2 steps of 1000.00 ms"), std::string::npos) << text;
  EXPECT_NE(text.find("matrix product 8 x 8 x 8       2  500.00   50.0 %     80.0     80 %  10.0"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("2 small operations"), std::string::npos) << text;
  EXPECT_NE(text.find("communication nothing hid"), std::string::npos) << text;
  EXPECT_EQ(text.find("tiny"), std::string::npos) << text;
}

TEST(Profile, ATrainingRunHasTheSameBitsAndTheFlopsOfItsFormula) {
  const testing_support::TemporaryDirectory folder;
  std::ofstream(folder.file("text.txt")) << testing_support::sample_text(60'000);
  ASSERT_EQ(longspan({"prepare", "--kind", "text", "--output", folder.file("d.h5"),
                      folder.file("text.txt")})
                .status,
            0);
  const auto train = [&](const std::string& run, const char* profile) {
    return longspan({"launch", "--ranks", "2", "--config", LONGSPAN_SOURCE_DIR "/configs/tiny.ini",
                     "--data.path", folder.file("d.h5"), "--run.directory", folder.file(run),
                     "--mesh.context", "2", "--train.steps", "4", "--train.validate-every", "2",
                     "--log.profile", profile});
  };
  const auto off = train("off", "off"), on = train("on", "on");
  ASSERT_EQ(off.status, 0) << off.err;
  ASSERT_EQ(on.status, 0) << on.err;
  EXPECT_EQ(off.out.find("where the time"), std::string::npos);
  EXPECT_FALSE(std::ifstream(folder.file("off/profile.json")));
  EXPECT_NE(on.out.find("attention backward"), std::string::npos) << on.out;
  const auto losses = [&](const std::string& run) {
    std::vector<double> all;
    std::ifstream file(folder.file(run) + "/metrics.jsonl");
    for (std::string line; std::getline(file, line);)
      all.push_back(nlohmann::json::parse(line)["loss"]);
    return all;
  };
  EXPECT_EQ(losses("on"), losses("off"));

  nlohmann::json report;
  std::ifstream(folder.file("on/profile.json")) >> report;
  EXPECT_EQ(report["steps"], 3);
  double known = report["comm_seconds"].get<double>() + report["data_seconds"].get<double>() +
                 report["other_seconds"].get<double>();
  double attention = 0;
  for (const auto& o : report["operations"]) {
    known += o["seconds"].get<double>();
    if (o["name"].get<std::string>().starts_with("attention "))
      attention += o["flops"].get<double>();
  }
  EXPECT_NEAR(known, report["seconds"].get<double>(), 1e-9);
  // 12 A h d per layer and sequence, half of it on each rank: zigzag shares the pairs evenly.
  // 2 layers, 2 heads of 32, 256 tokens, 4 sequences, 3 steps.
  const double pairs = 256.0 * 257 / 2;
  EXPECT_NEAR(attention, 3 * 4 * 2 * 12 * pairs * 64 / 2, 0.01 * 3 * 4 * 2 * 12 * pairs * 64 / 2);
}

}  // namespace
}  // namespace longspan::launcher
