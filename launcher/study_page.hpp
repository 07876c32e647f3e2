/// The results of a study as one HTML page. Read next: page.hpp.
#pragma once

#include <string>
#include <vector>

#include "launcher/page.hpp"
#include "launcher/study_result.hpp"

namespace longspan::launcher {

/// `name` of the study, for the title. Pure.
Page study_page(const std::string& name, const StudySpec& spec, const Study& study,
                const std::vector<PointResult>& rows);

}  // namespace longspan::launcher
