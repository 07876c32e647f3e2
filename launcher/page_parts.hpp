/// What page.cpp puts together, for it alone.
#pragma once

#include <string>
#include <string_view>

#include "launcher/page.hpp"

namespace longspan::launcher {

/// Embedded files. d3 is empty in a build without it.
std::string_view page_d3();
std::string_view page_script();
std::string_view page_style();

void check_chart(const Chart& chart);  ///< throws std::invalid_argument
/// Takes out what has no place on the axes and thins out what is too long; adds to the caption what
/// was done.
void thin_out(Chart& chart);
/// For page.js; safe inside of a script element.
std::string chart_json(const Chart& chart);
/// The numbers of a chart: all of them where they are few, else what sums them up.
PageTable chart_table(const Chart& chart);

}  // namespace longspan::launcher
