/// `longspan verify`: measured rows in, verdicts, tables and the exit status out. The bounds are
/// the numerics contract that README.md promises. How the rows are measured is in verify_cases.hpp;
/// how the ranks are started in verify.cpp.
#pragma once

#include <string>
#include <vector>

#include "launcher/verify_cases.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {

/// Of output, dq, dk, dv: relative L2 error against the oracle, fp32.
constexpr double kAttentionBound = 2e-6;
/// Of the log-sum-exp: absolute.
constexpr double kLseBound = 1e-5;
/// Times the error of one rank on the same problem. An error below kRoundingStep, one unit of fp32,
/// is never too many times another one: very short sequences have hardly any error on one rank.
constexpr double kTimesOneRankBound = 1.5;
constexpr double kRoundingStep = 0x1.0p-23;
/// Of the loss, relative to one rank, at every step.
constexpr double kLossBound = 1e-5;

/// Largest of the errors of output, dq, dk and dv, each over that of one rank (or kRoundingStep /
/// kTimesOneRankBound if that is larger).
double times_one_rank(const AttentionRow& row);

/// What is broken, one text per bound ("dQ 1.7e-01 > 2e-06"); empty: the row is ok.
std::vector<std::string> broken_bounds(const AttentionRow& row);
std::vector<std::string> broken_bounds(const TrainingRow& row);

struct VerifyReport {
  std::vector<AttentionRow> attention;
  std::vector<TrainingRow> training;
  double seconds = 0;
};

/// Rows whose broken_bounds() are not empty.
int broken_rows(const VerifyReport& report);
/// kDone, or kFailed if any row is broken or there is none.
ExitStatus report_status(const VerifyReport& report);
/// Both tables, every broken row in words, and a line that sums up. `colour`: verdicts in green and
/// red.
std::string report_text(const VerifyReport& report, bool colour);
/// The same as one JSON object. What is not finite is null.
std::string report_json(const VerifyReport& report);

/// The way of the rows from rank 0 to the process that started the ranks. rows_from_text throws
/// Error unless `text` holds exactly the rows of `ranks` and `scope`, in order: a row that is
/// missing must not pass for one that is ok.
std::string rows_to_text(const VerifyReport& report);
VerifyReport rows_from_text(const std::string& text, int ranks, const VerifyScope& scope);

/// "1,2,4" -> {1, 2, 4}, ascending, each once. Throws Error (usage).
std::vector<int> parse_ranks(const std::string& text);

}  // namespace longspan::launcher
