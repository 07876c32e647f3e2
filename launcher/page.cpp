#include "launcher/page.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "launcher/page_parts.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

/// The licence of D3 asks to go with every copy.
constexpr const char* kD3Licence = R"(/*
D3, Copyright Mike Bostock, https://d3js.org. Up to version 6 under the BSD licence: Redistribution and use in source
and binary forms, with or without modification, are permitted provided that the following conditions are met:
1. Redistributions of source code must retain the above copyright notice, this list of conditions and the following
disclaimer. 2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the
following disclaimer in the documentation and/or other materials provided with the distribution. 3. Neither the name of
the author nor the names of contributors may be used to endorse or promote products derived from this software without
specific prior written permission. From version 7 on under the ISC licence: Permission to use, copy, modify, and/or
distribute this software for any purpose with or without fee is hereby granted, provided that the above copyright notice
and this permission notice appear in all copies.
THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT OWNER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL,
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES;
LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN
CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS
SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
*/
)";

std::string table_html(const PageTable& table, bool with_caption) {
  // What is wider than the window scrolls by itself; the keyboard can do that too.
  std::string html =
      fmt::format("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\"><table>",
                  html_text(table.caption.empty() ? "table" : table.caption));
  if (with_caption && !table.caption.empty())
    html += fmt::format("<caption>{}</caption>", html_text(table.caption));
  const auto kind = [&](std::size_t column) {
    return column < table.text_columns ? "" : " class=\"number\"";
  };
  html += "<thead><tr>";
  for (std::size_t c = 0; c < table.columns.size(); ++c)
    html += fmt::format("<th scope=\"col\"{}>{}</th>", kind(c), html_text(table.columns[c]));
  html += "</tr></thead><tbody>\n";
  for (const auto& row : table.rows) {
    html += "<tr>";
    for (std::size_t c = 0; c < row.size(); ++c)
      html += c == 0 ? fmt::format("<th scope=\"row\"{}>{}</th>", kind(c), html_text(row[c]))
                     : fmt::format("<td{}>{}</td>", kind(c), html_text(row[c]));
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

std::string legend_html(const Chart& chart) {
  if (chart.series.size() < 2) return "";
  std::string html =
      fmt::format("<ul class=\"legend{}\">", chart.categories.empty() ? "" : " bars");
  int next = 0;  // as page.js colours them
  for (const Series& s : chart.series)
    html +=
        s.style == Series::Style::kIdeal && chart.categories.empty()
            ? fmt::format("<li class=\"ideal\">{}</li>", html_text(s.name))
            : fmt::format("<li style=\"--c: var(--s{})\">{}</li>", next++ % 8, html_text(s.name));
  return html + "</ul>\n";
}

}  // namespace

std::string html_text(const std::string& text) {
  std::string html;
  for (const char c : text) {
    switch (c) {
      case '&':
        html += "&amp;";
        break;
      case '<':
        html += "&lt;";
        break;
      case '>':
        html += "&gt;";
        break;
      case '"':
        html += "&quot;";
        break;
      case '\'':
        html += "&#39;";
        break;
      default:
        // Control characters have no meaning in HTML, and 0 is an error.
        html += static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t' ? ' ' : c;
    }
  }
  return html;
}

Page::Page(std::string title, std::string subtitle)
    : title_(std::move(title)), subtitle_(std::move(subtitle)) {}

void Page::section(const std::string& title, const std::string& text) {
  body_ += fmt::format("<h2>{}</h2>\n", html_text(title));
  if (!text.empty()) paragraph(text);
}

void Page::paragraph(const std::string& text) {
  body_ += fmt::format("<p>{}</p>\n", html_text(text));
}

void Page::warning(const std::string& text) {
  body_ += fmt::format("<p class=\"warning\"><b>Note:</b> {}</p>\n", html_text(text));
}

void Page::facts(const std::string& caption,
                 const std::vector<std::pair<std::string, std::string>>& rows) {
  body_ += "<div class=\"scroll\"><table class=\"facts\">";
  if (!caption.empty()) body_ += fmt::format("<caption>{}</caption>", html_text(caption));
  body_ += "<tbody>\n";
  for (const auto& [name, value] : rows)
    body_ += fmt::format("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", html_text(name),
                         html_text(value));
  body_ += "</tbody></table></div>\n";
}

void Page::table(const PageTable& table) {
  body_ += table_html(table, true);
}

void Page::folded_table(const PageTable& table) {
  body_ += fmt::format("<details><summary>{}</summary>{}</details>\n", html_text(table.caption),
                       table_html(table, false));
}

void Page::chart(Chart chart) {
  check_chart(chart);
  const std::string numbers = table_html(chart_table(chart), false);
  thin_out(chart);
  const int id = charts_++;
  body_ += fmt::format(
      "<figure class=\"chart\" aria-labelledby=\"c{0}\"><figcaption><h3 id=\"c{0}\">{1}</h3>\n", id,
      html_text(chart.title));
  if (!chart.caption.empty())
    body_ += fmt::format("<p class=\"caption\">{}</p>\n", html_text(chart.caption));
  body_ += "</figcaption>\n";
  const bool drawn = page_has_charts();
  if (drawn)
    body_ += fmt::format(
        "{}<div class=\"plot\" role=\"img\" aria-label=\"Chart: {}; its numbers are in the table "
        "below\"></div><output class=\"readout\"></output>\n"
        "<script type=\"application/json\">{}</script>\n",
        legend_html(chart), html_text(chart.title), chart_json(chart));
  body_ += fmt::format("<details{}><summary>Numbers</summary>{}</details></figure>\n",
                       drawn ? "" : " open", numbers);
}

std::string Page::html() const {
  std::string html = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      // The page can do nothing but show what is in it, even if a text should slip through.
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
      "'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>{0}</title>\n<style>\n{1}</style></head>\n<body>\n<header><h1>{0}</h1>\n",
      html_text(title_), page_style());
  if (!subtitle_.empty()) html += fmt::format("<p class=\"subtitle\">{}</p>", html_text(subtitle_));
  html += "</header>\n<main>\n";
  if (charts_ > 0 && !page_has_charts())
    html +=
        "<p class=\"warning\"><b>Note:</b> the program that wrote this page was built without D3 "
        "(Debian package node-d3): tables stand in for the charts.</p>\n";
  if (charts_ > 0 && page_has_charts())
    html +=
        "<noscript><p class=\"warning\">Without JavaScript the charts are not drawn; their "
        "numbers are in the tables.</p></noscript>\n";
  html += body_ + "</main>\n";
  if (charts_ > 0 && page_has_charts())
    html += fmt::format("<script>{}{}\n</script>\n<script>\n{}</script>\n", kD3Licence, page_d3(),
                        page_script());
  return html + "</body></html>\n";
}

bool page_has_charts() {
  return !page_d3().empty();
}

void write_page(const std::string& path, const Page& page) {
  const std::string temporary = path + ".new";
  {
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    file << page.html() << std::flush;
    if (!file) {
      const int error = errno;
      std::remove(temporary.c_str());
      fail("cannot write {}: {}", path, std::strerror(error));
    }
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    std::remove(temporary.c_str());
    fail("cannot write {}: {}", path, std::strerror(error));
  }
}

}  // namespace longspan::launcher
