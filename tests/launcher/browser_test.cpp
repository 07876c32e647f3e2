// label: slow
// timeout: 200
/// The pages in a real browser (browser_check.py drives headless Chromium): nothing on the console,
/// no request, every chart drawn, no wider than a phone. Skipped where there is no browser.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "launcher/page.hpp"
#include "support/process.hpp"
#include "support/temporary_directory.hpp"
#include "tests/launcher/report_runs.hpp"

namespace longspan::launcher {
namespace {

using nlohmann::json;
using testing_support::longspan;
constexpr const char* kHostile =
    "</script><script>injected = true</script><img src=http://127.0.0.1:9/x onerror=injected=true>";

class Browser : public testing::Test {
 protected:
  void SetUp() override {
    if (page_has_charts()) return;
    std::cout << "no browser here: for a build without D3" << std::endl;  // ctest reads this line
    GTEST_SKIP();
  }
  /// What the browser saw: three views. Null where there is no browser.
  json open(const std::string& page) {
    const auto result = testing_support::run_process(
        {"python3", LONGSPAN_SOURCE_DIR "/tests/launcher/browser_check.py", page});
    if (result.status == 3) {
      std::cout << "no browser here: " << result.err << std::endl;  // ctest reads this line
      return nullptr;
    }
    EXPECT_EQ(result.status, 0) << result.err;
    if (result.status != 0) return nullptr;
    const json seen = json::parse(result.out);
    EXPECT_EQ(seen["views"].size(), 3u);
    for (const json& view : seen["views"]) {
      SCOPED_TRACE(view["width"].dump() + " " + view["scheme"].dump());
      EXPECT_EQ(view["console"], json::array());
      EXPECT_EQ(view["requests"], json::array({seen["url"]})) << "the page itself";
      EXPECT_EQ(view["forbidden"], "img-src") << "the page's own policy refuses requests";
      EXPECT_EQ(view["injected"], false);
      EXPECT_EQ(view["images"], 0);
      EXPECT_LE(view["scrollWidth"], view["width"]) << "no scrolling sideways";
      for (const json& chart : view["charts"]) {
        SCOPED_TRACE(chart["title"].dump());
        EXPECT_EQ(chart["svg"], 1);
        EXPECT_GE(chart["ticks"], 2);
        EXPECT_GE(chart["rows"], 1) << "the table of its numbers";
        EXPECT_EQ(chart["outside"], json::array()) << "cut off at its sides";
        EXPECT_NE(chart["label"].get<std::string>().find("numbers are in the table"),
                  std::string::npos);
      }
      std::cout << fmt::format("{} px, {}: open after {:.0f} ms\n", view["width"].dump(),
                               view["scheme"].get<std::string>(), view["openMs"].get<double>());
    }
    EXPECT_NE(seen["views"][1]["background"], seen["views"][2]["background"]) << "dark is dark";
    EXPECT_GT(seen["views"][0]["pdf_bytes"], 10000);
    return seen;
  }
  testing_support::TemporaryDirectory folder_;
};

TEST_F(Browser, EveryKindOfChartIsDrawn) {
  Page page(std::string("Charts ") + kHostile, kHostile);
  page.warning(kHostile);
  page.table({.caption = "Wide",
              .columns = std::vector<std::string>(30, "a long title of a column"),
              .rows = {std::vector<std::string>(30, std::string(60, 'w'))}});
  page.facts("", {{"path", std::string(300, 'x')}});
  const double nan = std::nan("");
  Chart scaling{
      .title = kHostile,
      .x_title = "ranks",
      .y_title = "speed-up",
      .x_log = true,
      .y_log = true,
      .series = {
          {.name = "ideal",
           .x = {1, 2, 4, 16384},
           .y = {1, 2, 4, 16384},
           .style = Series::Style::kIdeal},
          {.name = kHostile,
           .x = {1, 2, 4},
           .y = {1, 1.9, 3.5},
           .low = {0.9, 1.8, 3.3},
           .high = {1.1, 2, 3.6},
           .style = Series::Style::kLineAndPoints,
           .labels = {kHostile, "b", "c"}},
          {.name = "points", .x = {1, 2, 4}, .y = {1, nan, 3}, .style = Series::Style::kPoints}}};
  page.chart(scaling);
  Chart bars{.title = "bars",
             .y_title = "seconds",
             .series = {{.name = "p", .x = {}, .y = {1, 2}}, {.name = "q", .x = {}, .y = {3, nan}}},
             .categories = {std::string(200, 'k'), "l"}};
  page.chart(bars);
  bars.grouped = true;
  bars.series[0].low = {0.5, 1.5}, bars.series[0].high = {1.5, 2.5};
  page.chart(bars);
  page.chart({.title = "nothing to draw",
              .x_title = "x",
              .y_title = "y",
              .series = {{.name = "a", .x = {1}, .y = {nan}}}});
  page.chart({.title = "one point, tiny numbers",
              .x_title = "x",
              .y_title = "y",
              .series = {{.name = "a", .x = {5}, .y = {1e-9}}}});
  write_page(folder_.file("page.html"), page);
  const json seen = open(folder_.file("page.html"));
  if (seen.is_null()) GTEST_SKIP();
  for (const json& view : seen["views"]) {
    const json& charts = view["charts"];
    ASSERT_EQ(charts.size(), 5u);
    ASSERT_EQ(charts[0]["lines"].size(), 2u);
    for (const json& length : charts[0]["lines"]) EXPECT_GT(length.get<double>(), 20);
    EXPECT_EQ(charts[0]["circles"], 5) << "three of the line, two points that exist";
    EXPECT_EQ(charts[0]["errors"], 3);
    ASSERT_EQ(charts[1]["bars"].size(), 3u) << "the fourth does not exist";
    EXPECT_NEAR(charts[1]["bars"][1].get<double>() / charts[1]["bars"][0].get<double>(), 3, 0.01);
    EXPECT_EQ(charts[2]["errors"], 2);
    EXPECT_EQ(charts[4]["circles"], 1);
    EXPECT_NE(view["readout"].get<std::string>().find("ranks "), std::string::npos)
        << "what the pointer is at: " << view["readout"];
  }
}

TEST_F(Browser, AReportOfManySteps) {
  for (const char* name : {"one", "two", "three"})
    invent_run(folder_.file(name), 100000, std::string(name) == "one" ? 1 : 1.2, kHostile);
  const std::string page = folder_.file("report.html");
  const auto result = longspan({"report", folder_.file("one"), folder_.file("two"),
                                folder_.file("three"), "--output", page});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_LT(std::filesystem::file_size(page), 3u << 20) << "of 90 MB of metrics";
  const json seen = open(page);
  if (seen.is_null()) GTEST_SKIP();
  for (const json& view : seen["views"]) {
    const json& charts = view["charts"];
    ASSERT_GE(charts.size(), 10u);
    EXPECT_EQ(charts[0]["title"], "Training loss");
    ASSERT_EQ(charts[0]["lines"].size(), 3u);
    for (const json& length : charts[0]["lines"]) EXPECT_GT(length.get<double>(), 200);
    EXPECT_EQ(charts[0]["bands"], 3);
    EXPECT_NE(view["readout"].get<std::string>().find("step "), std::string::npos);
  }
}

}  // namespace
}  // namespace longspan::launcher
