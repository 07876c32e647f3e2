/// Descriptions of machines: read, found by name, and refused with every problem at once.
#include "launcher/machine_file.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "parallel/error.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

std::string shipped(const std::string& name) {
  std::ifstream file(LONGSPAN_SOURCE_DIR "/configs/machines/" + name + ".ini");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

std::string refusal(const std::string& text) {
  try {
    parse_machine(text, "m.ini");
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), ExitStatus::kUsage);
    return e.what();
  }
  return "";
}

TEST(MachineFile, ShippedOnesAreReadAndEveryNumberSaysWhereItIsFrom) {
  int files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(LONGSPAN_SOURCE_DIR "/configs/machines")) {
    if (entry.path().extension() != ".ini") continue;
    ++files;
    const std::string name = entry.path().stem();
    EXPECT_EQ(load_machine(entry.path()).name, name);
    std::istringstream lines(shipped(name));
    for (std::string line; std::getline(lines, line);) {
      const bool number = line.find(" = ") != std::string::npos &&
                          line.find_first_of("123456789", line.find('=')) != std::string::npos &&
                          line.rfind("name", 0) != 0 && line.rfind("ranks-per-node", 0) != 0;
      if (!number) continue;
      EXPECT_NE(line.find('#'), std::string::npos) << name << ": " << line;
    }
  }
  EXPECT_EQ(files, 4);
}

TEST(MachineFile, RatesAreInterpolatedByTheLogarithmOfTheWidth) {
  MachineRates rates;
  rates.linear_flops = {{64, 1e9}, {256, 3e9}};
  EXPECT_EQ(rates.linear_flops.at(1), 1e9);
  EXPECT_DOUBLE_EQ(rates.linear_flops.at(128), 2e9);
  EXPECT_EQ(rates.linear_flops.at(256), 3e9);
  EXPECT_EQ(rates.linear_flops.at(9999), 3e9);
}

TEST(MachineFile, EveryRankHasItsAdapterUnlessTheFileSaysOtherwise) {
  const std::string cpu = shipped("cpu-avx512");
  EXPECT_EQ(parse_machine(cpu, "m.ini").adapters(), 1);
  EXPECT_EQ(parse_machine(shipped("h100-ndr"), "m.ini").adapters(), 8);
  EXPECT_NE(refusal(replaced(cpu, "adapters-per-node = 1 ", "adapters-per-node = 1.5 "))
                .find("it must be a whole number"),
            std::string::npos);
  EXPECT_NE(refusal(replaced(cpu, "adapters-per-node = 1 ", "adapters-per-node = 0 "))
                .find("it must be a number from 1 to 1024"),
            std::string::npos);
}

TEST(MachineFile, RanksOfANodeShareItsCoresOnlyWhereItSaysSo) {
  const MachineDescription cpu = parse_machine(shipped("cpu-avx512"), "cpu.ini"),
                           gpu = parse_machine(shipped("h100-ndr"), "gpu.ini");
  EXPECT_EQ(cpu.for_rank(4, 0).fp32.peak_flops, cpu.fp32.peak_flops / 4);
  EXPECT_EQ(cpu.for_rank(4, 0).memory_bytes, cpu.memory_bytes / 4);
  EXPECT_EQ(cpu.for_rank(4, 0).inside.bandwidth, cpu.inside.bandwidth);
  EXPECT_EQ(gpu.for_rank(4, 0).bf16.peak_flops, gpu.bf16.peak_flops);
  EXPECT_FALSE(gpu.fp32.given());
}

TEST(MachineFile, CoresThatNoThreadUsesDoNothing) {
  const MachineDescription cpu = parse_machine(shipped("cpu-avx512"), "cpu.ini");
  ASSERT_EQ(cpu.cores, 64);
  EXPECT_EQ(cpu.for_rank(4, 16).fp32.peak_flops, cpu.fp32.peak_flops / 4);
  EXPECT_EQ(cpu.for_rank(4, 8).fp32.peak_flops, cpu.fp32.peak_flops / 8);
  EXPECT_EQ(cpu.for_rank(4, 8).pointwise_bandwidth, cpu.pointwise_bandwidth / 8);
  EXPECT_EQ(cpu.for_rank(4, 8).memory_bytes, cpu.memory_bytes / 4)
      << "memory is theirs all the same";
  EXPECT_EQ(cpu.for_rank(4, 64).fp32.peak_flops, cpu.fp32.peak_flops / 4) << "threads in turns";
}

TEST(MachineFile, WhatBytesTakeFromTheCoresIsReadAndBounded) {
  const std::string cpu = shipped("cpu-avx512");
  const auto with = [&](const std::string& lines) {
    return replaced(cpu, "[links]\n", "[links]\n" + lines);
  };
  const MachineDescription m = parse_machine(
      with("inside-core-seconds-per-byte = 2e-9\ninside-tensor-core-seconds-per-byte = 3e-9\n"),
      "m.ini");
  EXPECT_EQ(m.inside.core_seconds_per_byte, 2e-9);
  EXPECT_EQ(m.inside.tensor_core_seconds_per_byte, 3e-9);
  EXPECT_EQ(m.between.tensor_core_seconds_per_byte, 0);
  for (const char* key : {"between-core-seconds-per-byte", "inside-tensor-core-seconds-per-byte"})
    for (const char* value : {"-1e-9", "1e-5"})
      EXPECT_NE(refusal(with(std::string(key) + " = " + value + "\n"))
                    .find(std::string(key) + "=" + value + ": it must be a number from 0 to 1e-06"),
                std::string::npos)
          << key << " " << value;
}

TEST(MachineFile, AllProblemsAtOnce) {
  std::string text = shipped("h100-ndr");
  text = replaced(text, "inside-bandwidth = 3.7e11", "inside-bandwidth = fast");
  text = replaced(text, "pointwise-bandwidth", "pointwise-bandwith");
  text = replaced(text, "shares-cores = off", "shares-cores = no");
  text = replaced(text, "ranks-per-node = 8", "ranks-per-node = 2.5");
  text = replaced(text, "bytes = 80e9", "bytes = 80");
  text =
      replaced(text, "linear-flops = 512:3.5e14 2048:6e14", "linear-flops = 2048:6e14 512:3.5e14");
  const std::string found = refusal(text);
  for (const char* part :
       {"links.inside-bandwidth=fast: it must be a number from 10000 to 1e+14",
        "unknown key, did you mean memory.pointwise-bandwidth?",
        "memory.pointwise-bandwidth is missing", "machine.shares-cores=no: it must be on or off",
        "machine.ranks-per-node=2.5: it must be a whole number",
        "memory.bytes=80: it must be a number from 1e+06 to 1e+15", "bf16.linear-flops=2048"})
    EXPECT_NE(found.find(part), std::string::npos) << part << "\n" << found;
  EXPECT_NE(refusal("[machine]\nname = m\n").find("it has no rates"), std::string::npos);
  EXPECT_NE(refusal(shipped("h100-ndr") + "\n[power]\nwatts-per-rank = 3\n").find("stands twice"),
            std::string::npos);
}

TEST(MachineFile, NamesAreFoundInTheUsersFolderAndPathsAnywhere) {
  const testing_support::TemporaryDirectory folder;
  setenv("XDG_CONFIG_HOME", folder.path().c_str(), 1);
  const auto says = [](const std::string& name) -> std::string {
    try {
      load_machine(name);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_NE(says("local").find("longspan doctor --calibrate"), std::string::npos);
  EXPECT_NE(says("moon").find("there are a100-hdr, cpu-avx512, h100-ndr, h200-ndr"),
            std::string::npos)
      << says("moon");
  EXPECT_NE(says("./moon.ini"), "");
  std::filesystem::create_directories(folder.file("longspan"));
  std::ofstream(folder.file("longspan/moon.ini"))
      << replaced(shipped("h100-ndr"), "name = h100-ndr", "name = moon");
  EXPECT_EQ(load_machine("moon").name, "moon");
  EXPECT_EQ(load_machine(folder.file("longspan/moon.ini")).name, "moon");
}

}  // namespace
}  // namespace longspan::launcher
