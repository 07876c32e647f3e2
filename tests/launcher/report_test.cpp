// timeout: 120
/// `longspan report`: what it reads of run directories, whole and damaged, and what it says of
/// them.
#include "launcher/report.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "support/process.hpp"
#include "support/sample_text.hpp"
#include "support/temporary_directory.hpp"
#include "tests/launcher/report_runs.hpp"

namespace longspan::launcher {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing_support::longspan;
using Row = std::vector<std::string>;

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class Report : public testing::Test {
 protected:
  ReportedRun invented(const std::string& name, std::int64_t steps = 200, double scale = 1,
                       std::int64_t tokens = 1024) {
    invent_run(folder_.file(name), steps, scale, "", tokens);
    return read_reported_run(folder_.file(name));
  }
  testing_support::TemporaryDirectory folder_;
};

TEST_F(Report, ReadsAllOfARun) {
  const ReportedRun run = invented("one", 2000);
  EXPECT_EQ(run.problems, Row{});
  EXPECT_EQ(run.status.state, RunState::kDone);
  EXPECT_EQ(run.status.restarts, 1);
  ASSERT_EQ(run.metrics.step.size(), 2000u);
  const StepMetrics last = invented_step(2000, 1);
  EXPECT_EQ(run.metrics.loss.back(), last.loss);
  EXPECT_EQ(run.metrics.validation_loss.back(), *last.validation_loss);
  EXPECT_TRUE(std::isnan(run.metrics.validation_loss.front()));

  ASSERT_TRUE(run.plan && run.profile);
  EXPECT_EQ(run.plan->allocated_bytes.measured, 110100480);
  EXPECT_EQ(run.plan->resident_bytes.predicted, std::nullopt);
  EXPECT_EQ(run.plan->step_seconds.predicted, 0.08);
  EXPECT_EQ(run.plan->memory.front().first, "weights") << "in the order of the file";
  EXPECT_EQ(run.profile->operations.at(1).seconds, 0.2);

  ASSERT_EQ(run.checkpoints.size(), 2u);
  EXPECT_EQ(run.checkpoints[0].step, 100);
  EXPECT_EQ(run.checkpoints[0].seconds, 1.5);
  EXPECT_EQ(run.checkpoints[0].in_the_way, 0.36);
  EXPECT_EQ(run.checkpoints[0].written, 0) << "not on disk any more";
  EXPECT_EQ(run.checkpoints[1].seconds, 0.25);
  EXPECT_GT(run.checkpoints[1].written, 1.7e9);
  const std::map<std::string, std::string> header(run.header.begin(), run.header.end());
  EXPECT_EQ(header.at("ranks").substr(0, 9), "2 ranks (") << "of the last start";
  EXPECT_EQ(run.program, "longspan 0.1.0 (abc), HDF5 1.10.8");

  const RunSummary summary = summary_of(run);
  EXPECT_EQ(summary.step, 2000);
  EXPECT_EQ(summary.steps, 2000);
  EXPECT_NEAR(summary.communication, 0.25, 1e-9);
  EXPECT_NEAR(summary.data, 0.02, 1e-9);
  EXPECT_EQ(summary.peak_memory_bytes, 314572800);
  EXPECT_NEAR(summary.step_seconds, 0.11, 0.002);
}

TEST_F(Report, DamagedLinesAreLeftOutAndCounted) {
  const std::string path = folder_.file("metrics.jsonl");
  write_text(path,
             "{\"step\":1,\"loss\":5.0}\nnonsense\n{\"step\":2,\"loss\":null}\n\n{\"loss\":1}\n"
             "{\"step\":3,\"loss\":3.0}\n[1]\n{\"step\":4,\"lo");
  const MetricColumns m = read_metrics(path);
  EXPECT_EQ(m.step, (std::vector<double>{1, 2, 3}));
  EXPECT_TRUE(std::isnan(m.loss[1]));
  EXPECT_EQ(m.loss[2], 3);
  EXPECT_EQ(m.damaged_lines, 4);
}

TEST_F(Report, StepsThatWereComputedAgainCountOnce) {
  const std::string path = folder_.file("metrics.jsonl");
  write_text(path,
             "{\"step\":1,\"loss\":1}\n{\"step\":2,\"loss\":2}\n{\"step\":3,\"loss\":3}\n"
             "{\"step\":2,\"loss\":20}\n{\"step\":3,\"loss\":30}\n");
  const MetricColumns m = read_metrics(path);
  EXPECT_EQ(m.step, (std::vector<double>{1, 2, 3}));
  EXPECT_EQ(m.loss, (std::vector<double>{1, 20, 30}));
}

TEST_F(Report, DifferencesComeFirst) {
  std::vector<ReportedRun> runs = {invented("one", 200, 1), invented("two", 200, 2)};
  name_runs(runs);
  const PageTable table = differences(runs);
  EXPECT_EQ(table.columns, (Row{"setting", "one", "two"}));
  ASSERT_EQ(table.rows.size(), 1u) << "the folder is none";
  EXPECT_EQ(table.rows[0], (Row{"optimizer.learning-rate", "1.000000", "2.000000"}));
  const std::string html = report_page(runs, "now").html();
  EXPECT_LT(html.find("What differs"), html.find("Training loss"));
  EXPECT_LT(html.find("Training loss"), html.find("All settings"));
  for (const char* part :
       {"Validation loss", "Throughput", "Communication", "Peak memory of a rank",
        "Where the time of a step goes", "Predicted and measured", "Starts and ends", "Checkpoints",
        "Test Processor 3000", "node02"})
    EXPECT_EQ(html.find(part) != std::string::npos, std::string(part) != "Validation loss") << part;
}

TEST_F(Report, RunsOfTheSameNameKeepTheirFolders) {
  std::vector<ReportedRun> runs = {invented("a/x"), invented("b/x")};
  name_runs(runs);
  EXPECT_EQ(runs[0].name, folder_.file("a/x"));
}

TEST_F(Report, DifferentBatchesAreComparedByTokens) {
  const std::vector<ReportedRun> alike = {invented("one"), invented("two")};
  EXPECT_EQ(report_page(alike, "").html().find("compared by tokens"), std::string::npos);
  const std::vector<ReportedRun> other = {invented("one"), invented("two", 200, 1, 4096)};
  EXPECT_NE(report_page(other, "").html().find("compared by tokens"), std::string::npos);
}

TEST_F(Report, ARestartIsMarkedInTheCurves) {
  if (!page_has_charts()) GTEST_SKIP() << "this build has no D3";
  const std::vector<ReportedRun> runs = {invented("one")};
  EXPECT_NE(report_page(runs, "").html().find(R"({"x":100.0,"text":"restart 1"})"),
            std::string::npos);
}

TEST_F(Report, WhatIsDamagedOrEmptyOrUnderWayIsALineAndNoCrash) {
  const std::string good = folder_.file("good"), bad = folder_.file("bad"),
                    empty = folder_.file("empty"), young = folder_.file("young");
  invent_run(good, 50, 1);
  for (const std::string& folder : {bad, empty, young}) fs::create_directories(folder);
  for (const char* name : {"plan.json", "profile.json", "config.ini", "log.txt", "history.jsonl"})
    write_text(bad + "/" + name, "{\"steps\": [[[ \xff\xfe saved /step- in s\n# (mesh.data=");
  write_text(bad + "/metrics.jsonl", "{\"step\":1,\"loss\":5.0}\n{\"step\":");
  fs::create_directories(bad + "/checkpoints/step-99999999999999999999");
  fs::create_directories(bad + "/checkpoints/step-xxxxxxxxxx");
  write_text(young + "/config.ini", "[train]\nsteps = 7\n");
  const auto result =
      longspan({"report", good, bad, empty, young, "--output", folder_.file("r.html")});
  EXPECT_EQ(result.status, 0) << result.err;
  const std::string html = read(folder_.file("r.html"));
  for (const char* problem :
       {"bad: plan.json is damaged", "bad: profile.json is damaged",
        "bad: config.ini: ", "bad: metrics.jsonl: 1 line is damaged",
        "empty: there is no metrics.jsonl", "young: there is no metrics.jsonl"}) {
    EXPECT_NE(result.err.find(problem), std::string::npos) << problem << "\n" << result.err;
    EXPECT_NE(html.find(problem), std::string::npos) << problem;
  }
  EXPECT_EQ(result.err.find("good"), std::string::npos) << result.err;
  EXPECT_EQ(testing_support::count_lines(result.out), 6) << result.out;

  const auto alone = longspan({"report", empty, "--output", folder_.file("e.html")});
  EXPECT_EQ(alone.status, 0) << alone.err;
  EXPECT_EQ(read(folder_.file("e.html")).find("<figure"), std::string::npos);
}

TEST_F(Report, TheTableAndItsJsonAgree) {
  invent_run(folder_.file("one"), 60, 1);
  const std::string page = folder_.file("r.html");
  const auto text = longspan({"report", folder_.file("one"), "--output", page});
  ASSERT_EQ(text.status, 0) << text.err;
  EXPECT_EQ(text.err, "");
  const auto as_json = longspan({"report", folder_.file("one"), "--output", page, "--json"});
  ASSERT_EQ(as_json.status, 0) << as_json.err;
  const json run = json::parse(as_json.out)["runs"][0];
  EXPECT_EQ(run["state"], "done");
  EXPECT_EQ(run["loss"], invented_step(60, 1).loss);
  EXPECT_TRUE(run["validation_loss"].is_null());
  EXPECT_NE(text.out.find(fmt::format("{:.4f}", run["loss"].get<double>())), std::string::npos)
      << text.out;
}

TEST_F(Report, WrongUseHasItsStatus) {
  const auto unknown = longspan({"report", folder_.file("nosuch")});
  EXPECT_EQ(unknown.status, 2);
  EXPECT_EQ(testing_support::count_lines(unknown.err), 1) << unknown.err;
  invent_run(folder_.file("one"), 3, 1);
  const auto unwritable =
      longspan({"report", folder_.file("one"), "--output", folder_.file("no/such/r.html")});
  EXPECT_EQ(unwritable.status, 1);
  EXPECT_NE(unwritable.err.find("no/such/r.html: No such file"), std::string::npos)
      << unwritable.err;
}

TEST_F(Report, ManyStepsMakeASmallPage) {
  invent_run(folder_.file("one"), 100000, 1);
  const std::string page = folder_.file("r.html");
  ASSERT_EQ(longspan({"report", folder_.file("one"), "--output", page}).status, 0);
  EXPECT_LT(fs::file_size(page), 1000000u) << "of 30 MB of metrics";
  EXPECT_NE(read(page).find("up to 100,000 points a line"), std::string::npos);
}

TEST_F(Report, ReadsWhatTrainingWrites) {
  write_text(folder_.file("text"), testing_support::sample_text(100000));
  const std::string data = folder_.file("d.h5"), run = folder_.file("run");
  ASSERT_EQ(longspan({"prepare", "--kind", "text", "--output", data, folder_.file("text")}).status,
            0);
  for (const char* stop_after : {"4", "0"}) {
    const auto result = longspan(testing_support::launch_tiny(
        2, data, run,
        "--run.threads 1 --train.steps 8 --checkpoint.every 2 --train.validate-every 4 "
        "--log.profile on",
        {"--train.stop-after", stop_after}));
    ASSERT_EQ(result.status, std::string(stop_after) == "4" ? 75 : 0) << result.err;
  }
  const ReportedRun read = read_reported_run(run);
  EXPECT_EQ(read.problems, Row{});
  EXPECT_EQ(read.metrics.step.size(), 8u);
  EXPECT_EQ(read.status.state, RunState::kDone);
  ASSERT_TRUE(read.plan && read.profile);
  EXPECT_GT(*read.plan->allocated_bytes.measured, 1000);
  EXPECT_GT(read.plan->memory.size(), 3u);
  EXPECT_GT(read.profile->operations.size(), 3u);
  ASSERT_EQ(read.checkpoints.size(), 4u) << "2, 4, 6, 8";
  for (const SavedCheckpoint& c : read.checkpoints) EXPECT_GE(c.seconds, 0) << c.step;
  const std::map<std::string, std::string> header(read.header.begin(), read.header.end());
  EXPECT_EQ(header.at("ranks").substr(0, 8), "2 ranks ");
  EXPECT_TRUE(header.contains("peak"));
  EXPECT_EQ(read.program.substr(0, 9), "longspan ");
}

}  // namespace
}  // namespace longspan::launcher
