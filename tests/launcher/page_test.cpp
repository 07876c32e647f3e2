/// The page as text: what is escaped, what is thinned out and said to be, which tables stand for
/// the charts. That a browser draws them is browser_test.cpp's to see.
#include "launcher/page.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "launcher/page_parts.hpp"
#include "parallel/error.hpp"
#include "support/temporary_directory.hpp"

namespace longspan::launcher {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr const char* kHostile = "</script><script>alert('1')</script><img src=x> & \"q\"";

/// How often `what` is in `text`.
int count(const std::string& text, const std::string& what) {
  int n = 0;
  for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += what.size()) ++n;
  return n;
}

Chart lines(std::vector<Series> series) {
  Chart chart{.title = "t", .x_title = "x", .y_title = "y", .series = std::move(series)};
  return chart;
}

TEST(Page, HostileTextIsText) {
  Page page(kHostile, kHostile);
  page.section(kHostile, kHostile);
  page.warning(kHostile);
  page.facts(kHostile, {{kHostile, kHostile}});
  page.table({.caption = kHostile, .columns = {kHostile}, .rows = {{kHostile}}});
  page.folded_table({.caption = kHostile, .columns = {kHostile}, .rows = {{kHostile}}});
  Chart chart{.title = kHostile,
              .caption = kHostile,
              .x_title = kHostile,
              .y_title = kHostile,
              .series = {{.name = kHostile, .x = {1}, .y = {1}, .labels = {kHostile}},
                         {.name = kHostile, .x = {1}, .y = {2}}},
              .marks = {{1, kHostile}}};
  page.chart(chart);
  chart.categories = {kHostile};
  chart.marks.clear();
  page.chart(chart);
  const std::string html = page.html();
  EXPECT_EQ(html.find("<img"), std::string::npos);
  EXPECT_EQ(html.find("<script>alert"), std::string::npos);
  EXPECT_EQ(count(html, "</script>"), count(html, "<script"));
  EXPECT_EQ(count(html, "<script"), page_has_charts() ? 4 : 0) << "two charts, D3 and page.js";
  EXPECT_GT(count(html, "&lt;/script&gt;"), 10);
}

TEST(Page, WhatIsNoUtf8DoesNotStopIt) {
  Page page("\xff\xfe");
  page.chart(lines({{.name = std::string("a\0b\xc3", 4), .x = {1, 2}, .y = {1, 2}}}));
  const std::string html = page.html();
  EXPECT_EQ(html.find('\0'), std::string::npos);
}

TEST(Page, NeedsNothingFromOutside) {
  Page page("t");
  page.chart(lines({{.name = "a", .x = {1, 2}, .y = {1, 2}}}));
  const std::string html = page.html();
  EXPECT_NE(html.find("Content-Security-Policy\" content=\"default-src 'none'"), std::string::npos);
  for (const char* reference : {" src=", " href=", "@import", "url("})
    EXPECT_EQ(html.substr(0, html.find("D3, Copyright")).find(reference), std::string::npos)
        << reference;
  EXPECT_EQ(html.find("<link"), std::string::npos);
}

TEST(Page, ThinsOutLongLinesAndSaysSo) {
  Series series{.name = "a", .x = {}, .y = {}};
  for (int i = 0; i < 100000; ++i) {
    series.x.push_back(i);
    series.y.push_back(std::sin(1e-4 * i));
  }
  series.y[31234] = 7, series.y[77777] = -5;  // one step each: no mean shows them
  Chart chart = lines({series, {.name = "short", .x = {0, 99999}, .y = {0, 1}}});
  thin_out(chart);
  const Series& thin = chart.series[0];
  ASSERT_EQ(thin.x.size(), Page::kSpans);
  ASSERT_EQ(thin.low.size(), Page::kSpans);
  EXPECT_EQ(*std::max_element(thin.high.begin(), thin.high.end()), 7);
  EXPECT_EQ(*std::min_element(thin.low.begin(), thin.low.end()), -5);
  for (std::size_t i = 0; i < thin.x.size(); ++i) {
    EXPECT_LE(thin.low[i], thin.y[i]);
    EXPECT_GE(thin.high[i], thin.y[i]);
    EXPECT_TRUE(i == 0 || thin.x[i] > thin.x[i - 1]);
  }
  // The mean of a span of 200 values.
  double mean = 0;
  for (int i = 0; i < 200; ++i) mean += std::sin(1e-4 * i) / 200;
  EXPECT_NEAR(thin.y[0], mean, 1e-6);
  EXPECT_EQ(chart.series[1].y.size(), 2u) << "what is short stays as it is";
  EXPECT_NE(chart.caption.find("100,000"), std::string::npos) << chart.caption;
}

TEST(Page, ThinningKeepsGaps) {
  Series series{.name = "a", .x = {}, .y = {}};
  for (int i = 0; i < 5000; ++i) {
    series.x.push_back(i);
    series.y.push_back(i >= 2000 && i < 3000 ? kNan : 1);
  }
  Chart chart = lines({series});
  thin_out(chart);
  int gaps = 0;
  for (const double y : chart.series[0].y) gaps += std::isnan(y);
  EXPECT_EQ(gaps, 100);
  const auto json = nlohmann::json::parse(chart_json(chart));
  EXPECT_TRUE(json["series"][0]["y"][250].is_null());
}

TEST(Page, ShortLinesStayAsTheyAre) {
  Chart chart = lines({{.name = "a", .x = {1, 2, 3}, .y = {0.1, kNan, 0.3}}});
  thin_out(chart);
  EXPECT_TRUE(chart.caption.empty());
  EXPECT_EQ(nlohmann::json::parse(chart_json(chart))["series"][0]["y"].dump(), "[0.1,null,0.3]");
}

TEST(Page, LogarithmsHaveNoPlaceForZeroAndSaySo) {
  Chart chart = lines({{.name = "a", .x = {0, 1, 2}, .y = {1, -1, 1}}});
  chart.x_log = chart.y_log = true;
  thin_out(chart);
  EXPECT_TRUE(std::isnan(chart.series[0].y[0]));
  EXPECT_TRUE(std::isnan(chart.series[0].y[1]));
  EXPECT_EQ(chart.series[0].y[2], 1);
  EXPECT_NE(chart.caption.find("2 points not above 0"), std::string::npos) << chart.caption;
}

TEST(Page, SaysWhichLineAnotherHides) {
  Chart chart = lines({{.name = "a", .x = {1, 2, 3}, .y = {1, 2, 9}},
                       {.name = "b", .x = {1, 2, 3}, .y = {1, 2.5, 9}},
                       {.name = "c", .x = {1, 2, 3}, .y = {1.001, 2, 9}}});
  thin_out(chart);
  EXPECT_EQ(chart.caption, "a lies under c.");
}

TEST(Page, TablesHoldTheNumbersOfCharts) {
  Chart few = lines({{.name = "a", .x = {1, 2}, .y = {10, 20}, .low = {9, 18}, .high = {11, 22}},
                     {.name = "b", .x = {2, 4}, .y = {5, kNan}}});
  PageTable table = chart_table(few);
  ASSERT_EQ(table.rows.size(), 3u) << "every place of any line";
  EXPECT_EQ(table.rows[0], (std::vector<std::string>{"1", "10 (9 to 11)", ""}));
  EXPECT_EQ(table.rows[1], (std::vector<std::string>{"2", "20 (18 to 22)", "5"}));
  EXPECT_EQ(table.rows[2], (std::vector<std::string>{"4", "", ""}));

  Series line{.name = "a", .x = {}, .y = {}};
  for (int i = 0; i < 5000; ++i) line.x.push_back(i), line.y.push_back(i == 7 ? -3 : i);
  table = chart_table(lines({line}));
  ASSERT_EQ(table.rows.size(), 1u);
  EXPECT_EQ(table.rows[0], (std::vector<std::string>{"a", "0", "4999", "-3", "4999"}));

  Chart bars{
      .title = "t",
      .series = {{.name = "p", .x = {}, .y = {1, 2}}, {.name = "q", .x = {}, .y = {3, kNan}}},
      .categories = {"k", "l"}};
  table = chart_table(bars);
  EXPECT_EQ(table.columns, (std::vector<std::string>{"", "p", "q", "sum"}));
  EXPECT_EQ(table.rows[0], (std::vector<std::string>{"k", "1", "3", "4"}));
  EXPECT_EQ(table.rows[1], (std::vector<std::string>{"l", "2", "", "2"}));
}

TEST(Page, LengthsThatDoNotMatchAreErrors) {
  Page page("t");
  EXPECT_THROW(page.chart(lines({{.name = "a", .x = {1, 2}, .y = {1}}})), std::invalid_argument);
  EXPECT_THROW(page.chart(lines({{.name = "a", .x = {1}, .y = {1}, .low = {1}}})),
               std::invalid_argument);
  EXPECT_THROW(
      page.chart(
          {.title = "t", .series = {{.name = "a", .x = {}, .y = {1}}}, .categories = {"k", "l"}}),
      std::invalid_argument);
}

TEST(Page, IsWrittenWholeOrNotAtAll) {
  const testing_support::TemporaryDirectory folder;
  write_page(folder.file("a.html"), Page("t"));
  EXPECT_EQ(std::filesystem::file_size(folder.file("a.html")), Page("t").html().size());
  EXPECT_THROW(write_page(folder.file("none/a.html"), Page("t")), Error);
  std::filesystem::create_directory(folder.file("folder.html"));
  EXPECT_THROW(write_page(folder.file("folder.html"), Page("t")), Error);
  EXPECT_FALSE(std::filesystem::exists(folder.file("folder.html.new")));
}

}  // namespace
}  // namespace longspan::launcher
