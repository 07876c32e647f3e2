/// `longspan verify`: measured rows in, verdicts, tables and the exit status out. The bounds are
/// the numerics contract that README.md promises. Which rows there are is in verify_cases.hpp; how
/// they are judged in verify_report.cpp, how they travel and are printed as JSON in
/// verify_json.cpp, how the ranks are started in verify.cpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "launcher/verify_cases.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {

/// Of an attention row. `relative`: relative L2 error of output, dq, dk and dv against the oracle.
/// `times_one_rank`: the same over that of one rank on the same problem. An error below
/// `rounding_step` is never too many times another one: very short sequences have hardly any error
/// on one rank.
struct AttentionBounds {
  double relative, lse, times_one_rank, rounding_step;
};
/// fp32: of the log-sum-exp the absolute error; one unit of rounding.
constexpr AttentionBounds kFp32Bounds = {2e-6, 1e-5, 1.5, 0x1.0p-23};
/// bf16, accumulated in fp32, against the oracle on rounded queries, keys and values: flat in the
/// number of ranks, because nothing else is rounded on the way. Partial results in bf16 would add 5
/// to 25 % (notes/long-sequences.md 9.3). Errors below a sixteenth of a bf16 unit are flat: kernels
/// that compute in fp32 have only those. log-sum-exp: relative L2.
constexpr AttentionBounds kBf16Bounds = {4e-3, 4e-3, 1.02, 0x1.0p-12};
constexpr const AttentionBounds& bounds_of(model::Precision precision) {
  return precision == model::Precision::kBf16 ? kBf16Bounds : kFp32Bounds;
}
/// Of the loss, relative to one rank, at every step.
constexpr double kLossBound = 1e-5;
/// Of the gradients of the first step, relative L2 to one rank.
constexpr double kGradientBound = 2e-6;

/// Largest of the errors of output, dq, dk and dv, each over that of one rank (or rounding_step /
/// times_one_rank if that is larger).
double times_one_rank(const AttentionRow& row);
/// "whole" for one rank: there is nothing to lay out.
std::string_view layout_of(const AttentionCase& what);

/// What is broken, one text per bound ("dQ 1.7e-01 > 2e-06"); empty: the row is ok.
std::vector<std::string> broken_bounds(const AttentionRow& row);
std::vector<std::string> broken_bounds(const TrainingRow& row);

struct VerifyReport {
  std::int64_t steps = VerifyScope().steps;  ///< of a training run
  std::vector<AttentionRow> attention;
  std::vector<TrainingRow> training;
  double seconds = 0;
};

/// Rows whose broken_bounds() are not empty.
int broken_rows(const VerifyReport& report);
/// kDone, or kFailed if any row is broken or there is none.
ExitStatus report_status(const VerifyReport& report);
/// The tables, every broken row in words, and a line that sums up. A line of the attention tables
/// shows the worst of all layouts, kinds of heads and lengths, line by line in JSON. `colour`:
/// verdicts in green and red.
std::string report_text(const VerifyReport& report, bool colour);
/// The same as one JSON object. What is not finite is null.
std::string report_json(const VerifyReport& report);

/// "attention, 2 ranks, ring zigzag causal MHA fp32, 193 tokens"
std::string describe(const AttentionCase& what);
std::string describe(const TrainingCase& what);

/// The way of the rows from rank 0 to the process that started the ranks. rows_from_text throws
/// Error unless `text` holds exactly the rows of `ranks` and `scope`, in order: a row that is
/// missing must not pass for one that is ok.
std::string rows_to_text(const VerifyReport& report);
VerifyReport rows_from_text(const std::string& text, int ranks, const VerifyScope& scope);

/// "1,2,4" -> {1, 2, 4}, ascending, each once. Throws Error (usage).
std::vector<int> parse_ranks(const std::string& text);

}  // namespace longspan::launcher
