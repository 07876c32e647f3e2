/// The command line of prepare, its summaries and progress, and the dataset view of inspect.
#include <gtest/gtest.h>
#include <stdio.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launcher/command.hpp"
#include "launcher/inspect_dataset.hpp"
#include "launcher/progress.hpp"
#include "tests/io/dataset_fixture.hpp"

namespace longspan::launcher {
namespace {

using io::contains;
using io::error_of;
using testing_support::TemporaryDirectory;
using Json = nlohmann::json;

template <class Work>
std::string stdout_of(Work&& work) {
  testing::internal::CaptureStdout();
  try {
    work();
  } catch (...) {
    testing::internal::GetCapturedStdout();
    throw;
  }
  return testing::internal::GetCapturedStdout();
}

std::string prepare(const std::vector<std::string>& arguments) {
  return stdout_of([&] { EXPECT_EQ(prepare_command(arguments), ExitStatus::kDone); });
}

class PrepareCommand : public testing::Test {
 protected:
  PrepareCommand() {
    std::filesystem::create_directories(input + "/sub");
    io::write_file(input + "/a.txt", std::string(600, 'a'));
    io::write_file(input + "/sub/b.txt", std::string(300, 'b'));
    io::write_file(input + "/sub/c.log", std::string(100, 'c'));
    io::write_file(input + "/empty.txt", "");
  }
  std::string usage_error(std::vector<std::string> arguments) {
    const std::string message = error_of([&] { prepare(arguments); }, ExitStatus::kUsage);
    EXPECT_FALSE(std::filesystem::exists(output));
    return message;
  }

  TemporaryDirectory folder;
  std::string input = folder.file("in"), output = folder.file("data.h5");
};

TEST_F(PrepareCommand, SummaryForPeople) {
  const std::string text = prepare({"--kind", "text", "--output", output, "--validation", "0.35",
                                    "--extensions", "txt,.md", input});
  for (const char* part :
       {"900 tokens in 2 documents", "train", "600 tokens  66.67 %", "300 tokens  33.33 %",
        "u8 from 2 files", "1 empty", "1 with other endings", "uuid"})
    EXPECT_TRUE(contains(text, part)) << part << "\n" << text;
}

TEST_F(PrepareCommand, SummaryForPrograms) {
  const Json json = Json::parse(
      prepare({"--kind", "text", "--output", output, "--validation", "0.35", "--json", input}));
  EXPECT_EQ(json["tokens"], 1000);
  EXPECT_EQ(json["documents"], 3);
  EXPECT_EQ(json["train"]["tokens"].get<int>() + json["valid"]["tokens"].get<int>(), 1000);
  EXPECT_EQ(json["dtype"], "u8");
  EXPECT_EQ(json["empty"], 1);
  EXPECT_EQ(json["file_bytes"], std::filesystem::file_size(output));
  EXPECT_EQ(json["uuid"], io::TokenDataset::open(output).facts().uuid);
}

TEST_F(PrepareCommand, LimitsTokensAndGenomes) {
  EXPECT_TRUE(
      contains(prepare({"--kind", "text", "--output", output, "--max-bytes", "0.5k", input}),
               "--max-bytes 500"));
  EXPECT_EQ(io::TokenDataset::open(output).facts().tokens, 500);
  io::write_file(folder.file("ids"), "1 2 3 400");
  const std::string ids = prepare({"--kind", "tokens", "--output", output, "--force", "--text-ids",
                                   "--vocabulary", "500", folder.file("ids")});
  EXPECT_TRUE(contains(ids, "u16 from 1 file, vocabulary 500")) << ids;
  EXPECT_TRUE(contains(ids, "its tail validates")) << ids;
  io::write_file(folder.file("g.fa"), ">r\nacgtX\n");
  const std::string genome = prepare({"--kind", "genome", "--output", output, "--force",
                                      "--unknown", "n", "--validation", "0", folder.file("g.fa")});
  EXPECT_TRUE(contains(genome, "4 letters read as upper case")) << genome;
  EXPECT_TRUE(contains(genome, "1 letter read as N")) << genome;
}

TEST_F(PrepareCommand, RefusesFlagsThatDoNotFit) {
  EXPECT_TRUE(contains(usage_error({"--output", output, input}), "--kind is missing"));
  EXPECT_TRUE(contains(usage_error({"--kind", "text", input}), "--output is missing"));
  EXPECT_TRUE(contains(usage_error({"--kind", "txt", "--output", output, input}),
                       "expected one of text, genome, tokens"));
  EXPECT_TRUE(contains(usage_error({"--kind", "text", "--output", output, "--dtype", "u16", input}),
                       "--kind tokens"));
  EXPECT_TRUE(contains(usage_error({"--kind", "text", "--output", output, "--unknown", "n", input}),
                       "--kind genome"));
  EXPECT_TRUE(contains(usage_error({"--kind", "tokens", "--output", output, input}), "--text-ids"));
  EXPECT_TRUE(contains(
      usage_error({"--kind", "tokens", "--output", output, "--dtype", "u16", "--text-ids", input}),
      "either"));
  EXPECT_TRUE(
      contains(usage_error({"--kind", "tokens", "--output", output, "--dtype", "u64", input}),
               "u8, u16, u32"));
  EXPECT_TRUE(contains(
      usage_error({"--kind", "genome", "--output", output, "--unknown", "x", input}), "error, n"));
  for (const char* size : {"many", "5X", "-1", "5Kix", ""})
    EXPECT_TRUE(
        contains(usage_error({"--kind", "text", "--output", output, "--max-bytes", size, input}),
                 "--max-bytes"))
        << size;
}

TEST_F(PrepareCommand, InspectForPeople) {
  prepare({"--kind", "text", "--output", output, "--validation", "0.35", input});
  const std::string text =
      stdout_of([&] { EXPECT_EQ(inspect_dataset(output, true, false), ExitStatus::kDone); });
  for (const char* part : {"1,000 tokens", "3 documents", "u8, vocabulary 256: bytes", "1 block",
                           "all match", "shortest 100, median 300", "longest 600",
                           "3 of 256 ids occur", "'a'", "60.000 %", "bits per token", "████"})
    EXPECT_TRUE(contains(text, part)) << part << "\n" << text;
  EXPECT_TRUE(contains(stdout_of([&] { inspect_dataset(output, false, false); }), "--verify"));
}

TEST_F(PrepareCommand, InspectForPrograms) {
  prepare({"--kind", "text", "--output", output, "--validation", "0.35", input});
  const Json json = Json::parse(stdout_of([&] { inspect_dataset(output, true, true); }));
  EXPECT_EQ(json["tokens"], 1000);
  EXPECT_EQ(json["verified"], true);
  EXPECT_EQ(json["tokenizer"]["kind"], "bytes");
  EXPECT_EQ(json["document_lengths"]["longest"], 600);
  EXPECT_EQ(json["token_frequencies"]["most_frequent"][0]["id"], 'a');
  EXPECT_NEAR(json["token_frequencies"]["entropy_bits"],
              -(0.6 * std::log2(0.6) + 0.3 * std::log2(0.3) + 0.1 * std::log2(0.1)), 1e-9);
  EXPECT_EQ(Json::parse(stdout_of([&] { inspect_dataset(output, false, true); }))["verified"],
            nullptr);
}

TEST_F(PrepareCommand, InspectFindsDamage) {
  prepare({"--kind", "text", "--output", output, input});
  std::string bytes = io::read_file(output);
  const std::size_t at = bytes.find("bbbbbbbb");
  ASSERT_NE(at, std::string::npos);
  bytes[at] = 'x';
  io::write_file(output, bytes);
  EXPECT_TRUE(
      contains(error_of([&] { inspect_dataset(output, true, false); }, ExitStatus::kDamaged),
               "block 0 of 1"));
  error_of([&] { inspect_dataset(folder.file("none.h5"), false, false); }, ExitStatus::kDamaged);
}

TEST(Bar, GrowsInEighths) {
  EXPECT_EQ(bar(0, 10), "");
  EXPECT_EQ(bar(1e-9, 10), "▏");
  EXPECT_EQ(bar(0.25, 10), "██▌");
  EXPECT_EQ(bar(1, 3), "███");
}

TEST(Progress, Texts) {
  EXPECT_EQ(progress_line("writing", "B", 500'000'000, 2'000'000'000, 2),
            "writing  25 %  500.0 MB of 2.0 GB  250.0 MB/s  6 s left");
  EXPECT_EQ(progress_line("counting", "tokens", 0, 50'000, 0),
            "counting  0 %  0 tokens of 50.0 k tokens");
  EXPECT_TRUE(contains(progress_line("x", "tokens", 999, 1000, 1), "99 %"));
  EXPECT_EQ(duration_text(59.4), "59 s");
  EXPECT_EQ(duration_text(185), "3 min 05 s");
  EXPECT_EQ(duration_text(7620), "2 h 07 min");
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(-1234567), "-1,234,567");
  EXPECT_EQ(counted(1, "file"), "1 file");
  EXPECT_EQ(counted(2000, "file"), "2,000 files");
}

TEST(Progress, PlainLinesInAFileAndNoneForShortWork) {
  const TemporaryDirectory folder;
  const auto written = [&](double seconds_between) {
    std::FILE* file = std::fopen(folder.file("log").c_str(), "w");
    {
      Progress progress(file, seconds_between);
      for (int i = 1; i <= 3; ++i) progress.update("writing", "tokens", i, 3);
    }
    std::fclose(file);
    return io::read_file(folder.file("log"));
  };
  const std::string lines = written(0);
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 3);
  EXPECT_EQ(lines.find('\r'), std::string::npos);
  EXPECT_TRUE(contains(lines, "writing  33 %"));
  EXPECT_EQ(written(-1), "");
}

}  // namespace
}  // namespace longspan::launcher
