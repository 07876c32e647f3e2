/// The rows of `longspan verify`: verdicts and tables.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "launcher/progress.hpp"
#include "launcher/table.hpp"
#include "launcher/verify.hpp"

namespace longspan::launcher {
namespace {

std::string error_text(double error) {
  return std::isfinite(error) ? fmt::format("{:.1e}", error) : "inf";
}

std::string cell(double value) {
  if (!std::isfinite(value)) return "inf";
  if (value < 1000) return fmt::format("{:.2f}", value);
  return value < 1e5 ? fmt::format("{:.0f}", value) : fmt::format("{:.0e}", value);
}

struct NamedErrors {
  const char* name;
  double sharded, one_rank;
};
std::vector<NamedErrors> relative_errors(const AttentionRow& row) {
  return {{"output", row.sharded.output, row.one_rank.output},
          {"dQ", row.sharded.dq, row.one_rank.dq},
          {"dK", row.sharded.dk, row.one_rank.dk},
          {"dV", row.sharded.dv, row.one_rank.dv}};
}
double over_one_rank(const NamedErrors& errors, const AttentionBounds& bounds) {
  return errors.sharded / std::max(errors.one_rank, bounds.rounding_step / bounds.times_one_rank);
}
/// NaN is above every bound.
bool above(double value, double bound) {
  return !(value <= bound);
}
/// NaN is the worst.
double worse(double a, double b) {
  return above(a, b) ? a : b;
}

/// --- Tables.

std::string verdict(bool ok, bool colour) {
  if (!colour) return ok ? "ok" : "BROKEN";
  return ok ? "\033[32mok\033[0m" : "\033[1;31mBROKEN\033[0m";
}

/// Empties the first cells that say what the row above said: groups are seen at a glance.
class Groups {
 public:
  std::vector<std::string> cells(std::vector<std::string> key) {
    std::vector<std::string> shown = key;
    for (std::size_t c = 0; c < key.size() && c < last_.size() && key[c] == last_[c]; ++c)
      shown[c].clear();
    last_ = std::move(key);
    return shown;
  }

 private:
  std::vector<std::string> last_;
};

const char* bits_text(bool same) {
  return same ? "same" : "DIFFER";
}

/// The worst of all rows of one rank count, scheme and mask.
struct Worst {
  AttentionErrors errors;
  double times_one_rank = 0;
  int cases = 0;
  bool ok = true;
  void add(const AttentionRow& row) {
    const AttentionErrors& e = row.sharded;
    errors.output = worse(e.output, errors.output), errors.lse = worse(e.lse, errors.lse);
    errors.dq = worse(e.dq, errors.dq), errors.dk = worse(e.dk, errors.dk);
    errors.dv = worse(e.dv, errors.dv);
    errors.keeps_agree = errors.keeps_agree && e.keeps_agree;
    errors.same_again = errors.same_again && e.same_again;
    times_one_rank = worse(launcher::times_one_rank(row), times_one_rank);
    ++cases;
    ok = ok && broken_bounds(row).empty();
  }
};

/// Errors in millionths: side by side, numbers without exponents are compared at a glance.
std::string attention_table(const std::vector<AttentionRow>& rows, bool colour) {
  constexpr auto kLeft = Table::Align::kLeft;
  Table table({{"ranks"},
               {"scheme", kLeft},
               {"", kLeft},
               {"mask", kLeft},
               {"cases"},
               {"output"},
               {"dQ"},
               {"dK"},
               {"dV"},
               {"LSE"},
               {"ratio"},
               {"keep", kLeft},
               {"twice", kLeft},
               {"", kLeft}});
  const auto in_millionths = [](double error) { return cell(error * 1e6); };
  for (const auto precision : {model::Precision::kFp32, model::Precision::kBf16}) {
    const AttentionBounds& bounds = bounds_of(precision);
    const std::string bound = in_millionths(bounds.relative);
    table.add({"", "", std::string(name_of(precision)), "at most", "", bound, bound, bound, bound,
               in_millionths(bounds.lse), cell(bounds.times_one_rank), bits_text(true),
               bits_text(true)});
  }
  using Key = std::vector<std::string>;
  std::vector<std::pair<Key, Worst>> groups;
  for (const AttentionRow& row : rows) {
    const Key key = {std::to_string(row.what.ranks), row.what.ranks == 1 ? "" : row.what.scheme,
                     std::string(name_of(row.what.precision)), std::string(name_of(row.what.mask))};
    if (groups.empty() || groups.back().first != key) groups.emplace_back(key, Worst());
    groups.back().second.add(row);
  }
  Groups shown;
  for (const auto& [key, worst] : groups) {
    auto cells = shown.cells(key);
    cells.push_back(std::to_string(worst.cases));
    const AttentionErrors& e = worst.errors;
    for (const double error : {e.output, e.dq, e.dk, e.dv, e.lse})
      cells.push_back(in_millionths(error));
    // 0: all below the rounding step.
    cells.push_back(key[0] == "1"                  ? ""
                    : worst.times_one_rank < 0.005 ? "flat"
                                                   : cell(worst.times_one_rank));
    cells.emplace_back(bits_text(e.keeps_agree));
    cells.emplace_back(bits_text(e.same_again));
    cells.push_back(verdict(worst.ok, colour));
    table.add(std::move(cells));
  }
  return table.text(2);
}

std::string training_table(const std::vector<TrainingRow>& rows, bool colour) {
  constexpr auto kLeft = Table::Align::kLeft;
  Table table({{"ranks"},
               {"data x context x tensor", kLeft},
               {"optimizer.shard", kLeft},
               {"model", kLeft},
               {"memory.keep", kLeft},
               {"loss"},
               {"gradient"},
               {"as keep=all", kLeft},
               {"run twice", kLeft},
               {"as shard=none", kLeft},
               {"", kLeft}});
  table.add({"", "", "", "", "at most", error_text(kLossBound), error_text(kGradientBound),
             "same bits", "same bits", "same bits"});
  Groups groups;
  for (const TrainingRow& row : rows) {
    const TrainingCase& what = row.what;
    const VerifiedModel& trained = verified_model(what.model);
    const bool shares = what.layout.shard != model::OptimizerShard::kNone;
    auto cells =
        groups.cells({std::to_string(what.layout.ranks()), to_string(what.layout),
                      std::string(name_of(what.layout.shard)), std::string(trained.shown)});
    cells.emplace_back(name_of(what.keep));
    for (const double difference : {row.loss_difference, row.gradient_difference})
      cells.push_back(error_text(difference) + (trained.has_bounds ? "" : " *"));
    cells.emplace_back(bits_text(row.same_as_keep_all));
    cells.emplace_back(bits_text(row.same_again));
    cells.emplace_back(shares ? bits_text(row.same_as_unsharded) : "");
    cells.push_back(verdict(broken_bounds(row).empty(), colour));
    table.add(std::move(cells));
  }
  return table.text(2);
}

template <class Row>
std::string broken_text(const std::vector<Row>& rows) {
  std::string text;
  for (const Row& row : rows)
    if (const auto broken = broken_bounds(row); !broken.empty())
      text += fmt::format("BROKEN: {}: {}\n", describe(row.what), fmt::join(broken, ", "));
  return text;
}

}  // namespace

std::string_view layout_of(const AttentionCase& what) {
  return what.ranks == 1 ? "whole" : name_of(what.layout);
}

std::string describe(const AttentionCase& what) {
  return fmt::format("attention, {}, {}{}{} {} {} {}, {}", counted(what.ranks, "rank"),
                     what.ranks == 1 ? "" : what.scheme, what.ranks == 1 ? "" : " ",
                     layout_of(what), name_of(what.mask), name_of(what.heads),
                     name_of(what.precision), counted(what.tokens, "token"));
}

std::string describe(const TrainingCase& what) {
  return fmt::format("training, {}, optimizer.shard={}, memory.keep={}, {}", to_string(what.layout),
                     name_of(what.layout.shard), name_of(what.keep),
                     verified_model(what.model).shown);
}

double times_one_rank(const AttentionRow& row) {
  double largest = 0;
  for (const NamedErrors& errors : relative_errors(row))
    largest = worse(over_one_rank(errors, bounds_of(row.what.precision)), largest);
  return largest;
}

std::vector<std::string> broken_bounds(const AttentionRow& row) {
  const AttentionBounds& bounds = bounds_of(row.what.precision);
  std::vector<std::string> broken;
  for (const NamedErrors& errors : relative_errors(row)) {
    if (above(errors.sharded, bounds.relative))
      broken.push_back(fmt::format("{} {} > {}", errors.name, error_text(errors.sharded),
                                   error_text(bounds.relative)));
    else if (above(over_one_rank(errors, bounds), bounds.times_one_rank))
      broken.push_back(fmt::format("{} {} > {} x {} of one rank", errors.name,
                                   error_text(errors.sharded), bounds.times_one_rank,
                                   error_text(errors.one_rank)));
  }
  if (above(row.sharded.lse, bounds.lse))
    broken.push_back(
        fmt::format("LSE {} > {}", error_text(row.sharded.lse), error_text(bounds.lse)));
  if (!row.sharded.padding_is_silent) broken.emplace_back("rows of padding are not zero");
  if (!row.sharded.keeps_agree) broken.emplace_back("not the bits of memory.keep=all");
  if (!row.sharded.same_again) broken.emplace_back("the second run had other bits");
  return broken;
}

std::vector<std::string> broken_bounds(const TrainingRow& row) {
  std::vector<std::string> broken;
  const bool bounded = verified_model(row.what.model).has_bounds;
  const auto check = [&](const char* name, double difference, double bound) {
    if (bounded ? above(difference, bound) : !std::isfinite(difference))
      broken.push_back(fmt::format("{} {} > {}", name, error_text(difference), error_text(bound)));
  };
  check("loss", row.loss_difference, kLossBound);
  check("gradient", row.gradient_difference, kGradientBound);
  if (!row.same_as_keep_all) broken.emplace_back("not the bits of memory.keep=all");
  if (!row.same_again) broken.emplace_back("the second run had other bits");
  if (!row.same_as_unsharded) broken.emplace_back("not the bits of optimizer.shard=none");
  return broken;
}

int broken_rows(const VerifyReport& report) {
  const auto is_broken = [](const auto& row) { return !broken_bounds(row).empty(); };
  return static_cast<int>(
      std::count_if(report.attention.begin(), report.attention.end(), is_broken) +
      std::count_if(report.training.begin(), report.training.end(), is_broken));
}

ExitStatus report_status(const VerifyReport& report) {
  const bool something = !report.attention.empty() && !report.training.empty();
  return something && broken_rows(report) == 0 ? ExitStatus::kDone : ExitStatus::kFailed;
}

std::string report_text(const VerifyReport& report, bool colour) {
  const int broken = broken_rows(report);
  const auto all = static_cast<std::int64_t>(report.attention.size() + report.training.size());
  std::string text =
      "Attention against dense attention in double precision, the worst of all layouts, heads and\n"
      "lengths. Errors in millionths: relative L2 of output, dQ, dK, dV; log-sum-exp: largest "
      "absolute\none in fp32, relative L2 in bf16. ratio: largest to the error of one rank. keep: "
      "memory.keep =\nall, attention and block bit for bit. twice: run again, bit for bit.\n\n" +
      attention_table(report.attention, colour) + "\nTraining, " + counted(report.steps, "step") +
      ", against one rank: largest relative difference of the loss, and relative L2\nof the first "
      "gradients (* has no bound). as shard=none: with one micro-batch a "
      "step.\n\n" +
      training_table(report.training, colour) + "\n" + broken_text(report.attention) +
      broken_text(report.training);
  if (broken == 0)
    text += fmt::format("{}: {} of {} rows keep their bounds; {}", verdict(true, colour),
                        grouped(all), grouped(all), duration_text(report.seconds));
  else
    text += fmt::format("{}: {} of {} rows break a bound; {}", verdict(false, colour),
                        grouped(broken), grouped(all), duration_text(report.seconds));
  return text;
}

}  // namespace longspan::launcher
