#include "model/kernels/cuda/gemm_algorithms.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>

#include "support/temporary_directory.hpp"

namespace longspan::model {
namespace {

TunedGemm example(std::int64_t m = 8192) {
  TunedGemm t;
  t.gpu = "NVIDIA H200, 132 multiprocessors";
  t.library = 130100;
  t.shape = {m, 2304, 768, 768, 768, 2304, false, true, false, true, true, 16};
  for (std::size_t i = 0; i < 8; ++i) t.algorithm.bytes[i] = 0x0123456789ABCDEFull * (i + 1);
  t.algorithm.bias_fused = true;
  return t;
}

bool same(const TunedGemm& a, const TunedGemm& b) {
  return a.gpu == b.gpu && a.library == b.library && a.shape == b.shape &&
         a.algorithm == b.algorithm;
}

TEST(GemmAlgorithms, ALineReadsBackAsWritten) {
  TunedGemm t = example();
  for (int flag = 0; flag < 6; ++flag) {
    bool* const flags[] = {&t.shape.trans_a, &t.shape.trans_b, &t.shape.accumulate,
                           &t.shape.bias,    &t.shape.bf16,    &t.algorithm.bias_fused};
    *flags[flag] = !*flags[flag];
    const auto read = parse_tuned_gemm(to_line(t));
    ASSERT_TRUE(read.has_value());
    EXPECT_TRUE(same(*read, t)) << to_line(t);
  }
  t.gpu = "two\nlines\tand a tab";
  EXPECT_EQ(to_line(t).find('\n'), std::string::npos);
  EXPECT_EQ(parse_tuned_gemm(to_line(t))->gpu, "two lines and a tab");
}

TEST(GemmAlgorithms, EveryDamagedByteIsNoticed) {
  const std::string line = to_line(example());
  for (std::size_t at = 0; at < line.size(); ++at) {
    for (const char wrong : {'0', '7', 'x', '\t', ' ', '\0'}) {
      std::string damaged = line;
      if (damaged[at] == wrong) continue;
      damaged[at] = wrong;
      EXPECT_FALSE(parse_tuned_gemm(damaged).has_value()) << at;
    }
    EXPECT_FALSE(parse_tuned_gemm(line.substr(0, at)).has_value()) << "torn at " << at;
  }
  EXPECT_FALSE(parse_tuned_gemm(line + line).has_value()) << "two writers in one line";
}

TEST(GemmAlgorithms, TheFileOutlivesTheProcessAndIsSharedByProcesses) {
  const testing_support::TemporaryDirectory directory;
  const std::string path = directory.file("a/b/cublaslt.txt");
  const TunedGemm one = example(1), two = example(2);
  {
    GemmAlgorithms first(path, one.gpu, one.library), second(path, one.gpu, one.library);
    EXPECT_FALSE(first.find(one.shape).has_value());
    first.add(one.shape, one.algorithm);
    second.add(two.shape, two.algorithm);
    // Both tuned the same product: the line that came first counts for everybody after.
    GemmAlgorithm other = one.algorithm;
    other.bytes[0] = 5;
    second.add(one.shape, other);
    EXPECT_EQ(second.find(one.shape), other);
  }
  const GemmAlgorithms later(path, one.gpu, one.library);
  EXPECT_EQ(later.find(one.shape), one.algorithm);
  EXPECT_EQ(later.find(two.shape), two.algorithm);
  GemmShape accumulates = one.shape;
  accumulates.accumulate = true;
  EXPECT_FALSE(later.find(accumulates).has_value());
  EXPECT_FALSE(GemmAlgorithms(path, "NVIDIA A100", one.library).find(one.shape).has_value());
  EXPECT_FALSE(GemmAlgorithms(path, one.gpu, one.library + 1).find(one.shape).has_value());
}

TEST(GemmAlgorithms, WhatIsNotOursIsLeftOutWithOneWarning) {
  const testing_support::TemporaryDirectory directory;
  const std::string path = directory.file("cublaslt.txt");
  std::string torn = to_line(example(2));
  torn.resize(torn.size() / 2);
  std::ofstream(path) << "some notes\n" << torn << "\n" << to_line(example(3)) << "\n\n";
  testing::internal::CaptureStderr();
  const GemmAlgorithms known(path, example().gpu, example().library);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("3 of 4 lines of " + path), std::string::npos) << said;
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  EXPECT_TRUE(known.find(example(3).shape).has_value());
  EXPECT_FALSE(known.find(example(2).shape).has_value());
}

TEST(GemmAlgorithms, AFileThatCannotBeWrittenIsSaidOnce) {
  const testing_support::TemporaryDirectory directory;
  const std::string blocked = directory.file("file");
  std::ofstream(blocked) << "";
  GemmAlgorithms known(blocked + "/cublaslt.txt", example().gpu, example().library);
  testing::internal::CaptureStderr();
  known.add(example(1).shape, example().algorithm);
  known.add(example(2).shape, example().algorithm);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  EXPECT_NE(said.find("Not a directory"), std::string::npos) << said;
  EXPECT_TRUE(known.find(example(2).shape).has_value()) << "remembered all the same";
}

TEST(GemmAlgorithms, WithoutAFileNothingIsWritten) {
  GemmAlgorithms known("", example().gpu, example().library);
  testing::internal::CaptureStderr();
  known.add(example().shape, example().algorithm);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_TRUE(known.find(example().shape).has_value());
}

TEST(GemmAlgorithms, TheFileOfTheEnvironment) {
  ::setenv("HOME", "/home/somebody", 1);
  ::unsetenv("XDG_CACHE_HOME");
  ::unsetenv("LONGSPAN_GEMM_CACHE");
  EXPECT_EQ(gemm_algorithms_path(), "/home/somebody/.cache/longspan/cublaslt.txt");
  ::setenv("XDG_CACHE_HOME", "/scratch/cache", 1);
  EXPECT_EQ(gemm_algorithms_path(), "/scratch/cache/longspan/cublaslt.txt");
  ::setenv("LONGSPAN_GEMM_CACHE", "/data/tuned", 1);
  EXPECT_EQ(gemm_algorithms_path(), "/data/tuned");
  ::setenv("LONGSPAN_GEMM_CACHE", "off", 1);
  EXPECT_EQ(gemm_algorithms_path(), "");
  ::unsetenv("LONGSPAN_GEMM_CACHE");
  ::unsetenv("XDG_CACHE_HOME");
  ::unsetenv("HOME");
  EXPECT_EQ(gemm_algorithms_path(), "");
}

}  // namespace
}  // namespace longspan::model
