#include "model/kernels/cuda/gemm_algorithms.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>

#include "parallel/random.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::model {
namespace {

TunedGemm example(std::int64_t m = 8192) {
  TunedGemm t;
  t.gpu = "NVIDIA H200, 132 multiprocessors";
  t.library = 130100;
  t.shape = {m, 2304, 768, 768, 768, 2304, false, true, false, true, true, 16, GemmEpilogue::kNone};
  for (std::size_t i = 0; i < 8; ++i) t.algorithm.bytes[i] = 0x0123456789ABCDEFull * (i + 1);
  t.algorithm.bias_fused = true;
  t.shape.epilogue = GemmEpilogue::kGeluKeep;
  t.algorithm.epilogue_fused = true;
  return t;
}

bool same(const TunedGemm& a, const TunedGemm& b) {
  return a.gpu == b.gpu && a.library == b.library && a.shape == b.shape &&
         a.algorithm == b.algorithm;
}

TEST(GemmAlgorithms, ALineReadsBackAsWritten) {
  TunedGemm t = example();
  for (int flag = 0; flag < 7; ++flag) {
    bool* const flags[] = {
        &t.shape.trans_a, &t.shape.trans_b,        &t.shape.accumulate,        &t.shape.bias,
        &t.shape.bf16,    &t.algorithm.bias_fused, &t.algorithm.epilogue_fused};
    *flags[flag] = !*flags[flag];
    const auto read = parse_tuned_gemm(to_line(t));
    ASSERT_TRUE(read.has_value());
    EXPECT_TRUE(same(*read, t)) << to_line(t);
  }
  for (const GemmEpilogue epilogue :
       {GemmEpilogue::kNone, GemmEpilogue::kGelu, GemmEpilogue::kGeluKeep,
        GemmEpilogue::kGeluBackward, GemmEpilogue::kGeluBackwardBias}) {
    t.shape.epilogue = epilogue;
    EXPECT_TRUE(same(*parse_tuned_gemm(to_line(t)), t)) << to_line(t);
  }
  t.gpu = "two\nlines\tand a tab";
  EXPECT_EQ(to_line(t).find('\n'), std::string::npos);
  EXPECT_EQ(parse_tuned_gemm(to_line(t))->gpu, "two lines and a tab");
}

/// What older versions wrote stays of use; what a newer one might write does not pass for ours.
TEST(GemmAlgorithms, LinesOfTheFirstFormatStillCount) {
  const auto with_checksum = [](const std::string& line) {
    return fmt::format("{}\t{:016x}", line, hash_name(line));
  };
  std::string fields = "\tNVIDIA H200, 132 multiprocessors\t130100\t";
  std::string words;
  for (const std::uint64_t word : example().algorithm.bytes) words += fmt::format(" {:016x}", word);
  const std::string shape = "8192 2304 768 768 768 2304 0 1 0 1 1 16";
  const auto read =
      parse_tuned_gemm(with_checksum("longspan-gemm-1" + fields + shape + "\t1" + words));
  ASSERT_TRUE(read.has_value());
  TunedGemm expected = example();
  expected.shape.epilogue = GemmEpilogue::kNone;
  expected.algorithm.epilogue_fused = false;
  EXPECT_TRUE(same(*read, expected));

  const auto second = [&](const std::string& epilogue, const std::string& flags) {
    return parse_tuned_gemm(
        with_checksum("longspan-gemm-2" + fields + shape + epilogue + "\t" + flags + words));
  };
  EXPECT_TRUE(second(" 4", "0 1").has_value());
  EXPECT_FALSE(second(" 5", "0 1").has_value()) << "an epilogue that nobody knows";
  EXPECT_FALSE(second(" -1", "0 1").has_value());
  EXPECT_FALSE(second("", "0 1").has_value());
  EXPECT_FALSE(second(" 4", "0").has_value());
  EXPECT_FALSE(second(" 4", "0 2").has_value());
  EXPECT_FALSE(
      parse_tuned_gemm(with_checksum("longspan-gemm-1" + fields + shape + " 4\t0 1" + words))
          .has_value());
}

TEST(GemmAlgorithms, FusedOnlyWhereItWasFaster) {
  constexpr double kNever = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(fastest_fused({3.0, 1.0, 2.0}, 1.5), 1u);
  EXPECT_EQ(fastest_fused({3.0, 1.0, 2.0}, 1.0), std::nullopt) << "equal: apart, the exact one";
  EXPECT_EQ(fastest_fused({3.0, nan, 2.0}, 2.5), 2u);
  EXPECT_EQ(fastest_fused({kNever}, kNever), std::nullopt);
  EXPECT_EQ(fastest_fused({kNever, 7.0}, kNever), 1u);
  EXPECT_EQ(fastest_fused({}, 1.0), std::nullopt) << "the library offers nothing";
}

/// The decision for one shape, fused or apart, and that of the plain product stand side by side.
TEST(GemmAlgorithms, ADecisionIsKeptForItsEpilogueAlone) {
  const testing_support::TemporaryDirectory directory;
  const std::string path = directory.file("cublaslt.txt");
  TunedGemm plain = example(), apart = example();
  plain.shape.epilogue = GemmEpilogue::kNone;
  plain.algorithm.epilogue_fused = false;
  apart.shape.epilogue = GemmEpilogue::kGeluBackwardBias;
  apart.algorithm = {};
  {
    GemmAlgorithms known(path, plain.gpu, plain.library);
    for (const TunedGemm& t : {plain, example(), apart}) known.add(t.shape, t.algorithm);
  }
  const GemmAlgorithms later(path, plain.gpu, plain.library);
  EXPECT_EQ(later.find(plain.shape), plain.algorithm);
  EXPECT_EQ(later.find(example().shape), example().algorithm);
  EXPECT_TRUE(later.find(example().shape)->epilogue_fused);
  ASSERT_TRUE(later.find(apart.shape).has_value());
  EXPECT_FALSE(later.find(apart.shape)->epilogue_fused);
  apart.shape.epilogue = GemmEpilogue::kGeluBackward;
  EXPECT_FALSE(later.find(apart.shape).has_value());
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
