/// `longspan report`: training runs as one HTML page (page.hpp) and as a short table. Read next:
/// report_run.hpp, which reads them.
#pragma once

#include <string>
#include <vector>

#include "launcher/page.hpp"
#include "launcher/report_run.hpp"

namespace longspan::launcher {

/// A run in a few numbers; NaN where there is none.
struct RunSummary {
  std::int64_t step = 0, steps = 0;      ///< steps: of the whole run; 0 = not known
  double loss = 0, validation_loss = 0;  ///< of the last step; the best one
  double tokens_per_second = 0, step_seconds = 0, mfu = 0;  ///< medians without the first step
  double communication = 0, data = 0;                       ///< share of the time of all steps
  double peak_memory_bytes = 0, seconds = 0;                ///< seconds: all steps, saves left out
};
RunSummary summary_of(const ReportedRun& run);

/// Gives every run a name as short as keeps them apart.
void name_runs(std::vector<ReportedRun>& runs);

/// What the page shows first when there are several runs: settings that differ, one row each. The
/// name of a run and its folder do not count.
PageTable differences(const std::vector<ReportedRun>& runs);

/// `made`: who wrote it and when, for the line under the title.
Page report_page(const std::vector<ReportedRun>& runs, const std::string& made);

// The parts of the page.
void add_summary(Page& page, const std::vector<ReportedRun>& runs);
void add_curves(Page& page, const std::vector<ReportedRun>& runs);
void add_step_parts(Page& page, const std::vector<ReportedRun>& runs);
void add_memory(Page& page, const std::vector<ReportedRun>& runs);
void add_predictions(Page& page, const std::vector<ReportedRun>& runs);
void add_events(Page& page, const std::vector<ReportedRun>& runs);
void add_hardware(Page& page, const std::vector<ReportedRun>& runs);
void add_configuration(Page& page, const std::vector<ReportedRun>& runs);

}  // namespace longspan::launcher
