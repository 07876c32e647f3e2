/// `longspan verify`: starts itself on every rank count, one after the other; rank 0 leaves its
/// rows in a file.
#include "launcher/verify.hpp"

#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/launch.hpp"
#include "launcher/machine.hpp"
#include "launcher/progress.hpp"
#include "launcher/table.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr const char* kOnRanks =
    "--on-ranks";  ///< how verify calls itself; not for people, so not in the help
constexpr int kMostRanks = 64;
constexpr std::int64_t kMostTokens = 1 << 15;

std::string_view name_of(SequenceLayout layout) {
  return layout == SequenceLayout::kZigzag ? "zigzag" : "contiguous";
}
/// With one rank there is nothing to lay out.
std::string_view layout_of(const AttentionCase& what) {
  return what.ranks == 1 ? "whole" : name_of(what.layout);
}
std::string_view heads_of(const AttentionCase& what) {
  return what.grouped ? "GQA" : "MHA";
}
std::string_view shape_of(const TrainingCase& what) {
  return what.model == "gpt2" ? "GPT-2-like" : "Llama-like";
}

std::string describe(const AttentionCase& what) {
  return fmt::format("attention, {}, {} {} {} {}, {}", counted(what.ranks, "rank"), what.scheme,
                     layout_of(what), launcher::name_of(what.mask), heads_of(what),
                     counted(what.tokens, "token"));
}
std::string describe(const TrainingCase& what) {
  return fmt::format("training, {} x {}, memory.keep={}, {}", what.data, what.context,
                     launcher::name_of(what.keep), shape_of(what));
}

std::string error_text(double error) {
  return std::isfinite(error) ? fmt::format("{:.1e}", error) : "inf";
}

/// "0.27" for 2.7e-07: side by side, such numbers are compared at a glance.
std::string in_millionths(double error) {
  const double millionths = error * 1e6;
  if (!std::isfinite(millionths)) return "inf";
  return millionths < 1000 ? fmt::format("{:.2f}", millionths) : fmt::format("{:.0e}", millionths);
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
double over_one_rank(const NamedErrors& errors) {
  return errors.sharded / std::max(errors.one_rank, kRoundingStep / kTimesOneRankBound);
}
/// NaN is above every bound.
bool above(double value, double bound) {
  return !(value <= bound);
}

/// --- Rows as JSON. Infinity has no JSON: null.

Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}
double number_from(const Json& json) {
  return json.is_null() ? kInfinity : json.get<double>();
}

Json to_json(const AttentionErrors& e) {
  return {{"output", number(e.output)},
          {"dq", number(e.dq)},
          {"dk", number(e.dk)},
          {"dv", number(e.dv)},
          {"lse", number(e.lse)}};
}
AttentionErrors errors_from(const Json& json) {
  return {number_from(json.at("output")), number_from(json.at("dq")), number_from(json.at("dk")),
          number_from(json.at("dv")), number_from(json.at("lse"))};
}

template <class Row>
void add_verdict(Json& json, const Row& row) {
  const auto broken = broken_bounds(row);
  json["verdict"] = broken.empty() ? "ok" : "BROKEN";
  json["broken"] = broken;
}

Json to_json(const AttentionRow& row) {
  const AttentionCase& what = row.what;
  Json json = {{"ranks", what.ranks},
               {"scheme", what.scheme},
               {"layout", layout_of(what)},
               {"mask", launcher::name_of(what.mask)},
               {"heads", heads_of(what)},
               {"tokens", what.tokens},
               {"error", to_json(row.sharded)},
               {"error_of_one_rank", to_json(row.one_rank)},
               {"times_one_rank", number(times_one_rank(row))}};
  add_verdict(json, row);
  return json;
}

Json to_json(const TrainingRow& row) {
  const TrainingCase& what = row.what;
  Json json = {{"ranks", what.data * what.context},
               {"data", what.data},
               {"context", what.context},
               {"keep", launcher::name_of(what.keep)},
               {"model", what.model},
               {"loss_difference", number(row.loss_difference)},
               {"same_as_keep_all", row.same_as_keep_all},
               {"same_again", row.same_again}};
  add_verdict(json, row);
  return json;
}

template <class Row>
Json to_json(const std::vector<Row>& rows) {
  Json json = Json::array();
  for (const Row& row : rows) json.push_back(to_json(row));
  return json;
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

std::string attention_table(const std::vector<AttentionRow>& rows, bool colour) {
  constexpr auto kLeft = Table::Align::kLeft;
  Table table({{"ranks"},
               {"scheme", kLeft},
               {"layout", kLeft},
               {"tokens"},
               {"mask", kLeft},
               {"heads", kLeft},
               {"output"},
               {"dQ"},
               {"dK"},
               {"dV"},
               {"LSE"},
               {"ratio"},
               {"", kLeft}});
  const std::string bound = in_millionths(kAttentionBound);
  table.add({"", "", "", "", "at most", "", bound, bound, bound, bound, in_millionths(kLseBound),
             fmt::format("{:.2f}", kTimesOneRankBound)});
  Groups groups;
  for (const AttentionRow& row : rows) {
    const AttentionCase& what = row.what;
    auto cells =
        groups.cells({std::to_string(what.ranks), what.scheme, std::string(layout_of(what)),
                      std::to_string(what.tokens), std::string(launcher::name_of(what.mask))});
    cells.emplace_back(heads_of(what));
    for (const NamedErrors& errors : relative_errors(row))
      cells.push_back(in_millionths(errors.sharded));
    cells.push_back(in_millionths(row.sharded.lse));
    cells.push_back(what.ranks == 1 ? "" : fmt::format("{:.2f}", times_one_rank(row)));
    cells.push_back(verdict(broken_bounds(row).empty(), colour));
    table.add(std::move(cells));
  }
  return table.text(2);
}

std::string training_table(const std::vector<TrainingRow>& rows, bool colour) {
  constexpr auto kLeft = Table::Align::kLeft;
  Table table({{"ranks"},
               {"data x context", kLeft},
               {"model", kLeft},
               {"memory.keep", kLeft},
               {"loss"},
               {"as keep=all", kLeft},
               {"run twice", kLeft},
               {"", kLeft}});
  table.add({"", "", "", "at most", error_text(kLossBound), "same bits", "same bits"});
  Groups groups;
  for (const TrainingRow& row : rows) {
    const TrainingCase& what = row.what;
    auto cells = groups.cells({std::to_string(what.data * what.context),
                               fmt::format("{} x {}", what.data, what.context),
                               std::string(shape_of(what))});
    cells.emplace_back(launcher::name_of(what.keep));
    cells.push_back(error_text(row.loss_difference));
    cells.emplace_back(row.same_as_keep_all ? "same" : "DIFFER");
    cells.emplace_back(row.same_again ? "same" : "DIFFER");
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

/// --- Processes.

/// A folder for the rows of the ranks, gone with this object.
class RowsFolder {
 public:
  RowsFolder() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "longspan-verify-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr)
      fail("cannot make a folder like {}: set TMPDIR to one that can be written", pattern);
    path_ = pattern;
  }
  ~RowsFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  RowsFolder(const RowsFolder&) = delete;
  RowsFolder& operator=(const RowsFolder&) = delete;
  std::string file(int ranks) const { return fmt::format("{}/{}.json", path_, ranks); }

 private:
  std::string path_;
};

/// One of the processes that verify starts: measures, and rank 0 writes the rows.
ExitStatus verify_on_ranks(const std::vector<std::string>& arguments) {
  const Arguments args({arguments.begin() + 1, arguments.end()}, "verify", "",
                       {{"rows", "FILE", ""}, {"tokens", "N", ""}, {"quick", "", ""}}, "");
  const MpiRuntime mpi;
  const Communicator world = Communicator::world();
  log::set_rank(world.rank());
  set_threads(0, world);
  const VerifyScope scope{args.integer("tokens"), args.has("quick")};
  VerifyReport report;
  report.attention = measure_attention(world, scope);
  report.training = measure_training(world, scope);
  if (world.rank() == 0) {
    std::ofstream file(args.text("rows"));
    file << rows_to_text(report) << std::flush;
    if (!file) fail("cannot write {}: is the folder full?", args.text("rows"));
  }
  return ExitStatus::kDone;
}

VerifyReport start_on(int ranks, const VerifyScope& scope, const std::string& rows_file) {
  std::vector<std::string> words = {"verify",  kOnRanks,   "--rows",
                                    rows_file, "--tokens", std::to_string(scope.tokens)};
  if (scope.quick) words.emplace_back("--quick");
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  const int status = run_and_watch(mpirun_command(ranks, usable_cores(), ::geteuid() == 0,
                                                  /*several_nodes=*/false, self, words));
  if (status == static_cast<int>(ExitStatus::kRequeue) || status == 128 + SIGINT)
    fail("verify was stopped while it measured {}: nothing is proven", counted(ranks, "rank"));
  if (status != 0)
    fail("verify: {} ended with status {}: what they said stands above", counted(ranks, "rank"),
         status);
  std::ifstream file(rows_file);
  return rows_from_text({std::istreambuf_iterator<char>(file), {}}, ranks, scope);
}

}  // namespace

double times_one_rank(const AttentionRow& row) {
  double largest = 0;
  for (const NamedErrors& errors : relative_errors(row))
    largest = std::max(largest, over_one_rank(errors));
  return largest;
}

std::vector<std::string> broken_bounds(const AttentionRow& row) {
  std::vector<std::string> broken;
  for (const NamedErrors& errors : relative_errors(row)) {
    if (above(errors.sharded, kAttentionBound))
      broken.push_back(fmt::format("{} {} > {}", errors.name, error_text(errors.sharded),
                                   error_text(kAttentionBound)));
    else if (above(over_one_rank(errors), kTimesOneRankBound))
      broken.push_back(fmt::format("{} {} > {} x {} of one rank", errors.name,
                                   error_text(errors.sharded), kTimesOneRankBound,
                                   error_text(errors.one_rank)));
  }
  if (above(row.sharded.lse, kLseBound))
    broken.push_back(
        fmt::format("LSE {} > {}", error_text(row.sharded.lse), error_text(kLseBound)));
  return broken;
}

std::vector<std::string> broken_bounds(const TrainingRow& row) {
  std::vector<std::string> broken;
  if (above(row.loss_difference, kLossBound))
    broken.push_back(
        fmt::format("loss {} > {}", error_text(row.loss_difference), error_text(kLossBound)));
  if (!row.same_as_keep_all) broken.emplace_back("not the bits of memory.keep=all");
  if (!row.same_again) broken.emplace_back("the second run had other bits");
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
      "Attention against dense attention in double precision. Errors in millionths: relative L2 "
      "of\n"
      "output, dQ, dK and dV, absolute of the log-sum-exp; ratio: largest to the error of one "
      "rank.\n\n" +
      attention_table(report.attention, colour) +
      "\nTraining, 20 steps: largest relative difference of the loss to one rank.\n\n" +
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

std::string report_json(const VerifyReport& report) {
  const Json json = {{"verdict", report_status(report) == ExitStatus::kDone ? "ok" : "BROKEN"},
                     {"broken_rows", broken_rows(report)},
                     {"bounds",
                      {{"attention", kAttentionBound},
                       {"lse", kLseBound},
                       {"times_one_rank", kTimesOneRankBound},
                       {"loss", kLossBound}}},
                     {"attention", to_json(report.attention)},
                     {"training", to_json(report.training)},
                     {"seconds", report.seconds},
                     {"program", version_line()}};
  return json.dump(2);
}

std::string rows_to_text(const VerifyReport& report) {
  return Json{{"attention", to_json(report.attention)}, {"training", to_json(report.training)}}
      .dump();
}

VerifyReport rows_from_text(const std::string& text, int ranks, const VerifyScope& scope) {
  VerifyReport report;
  try {
    const Json json = Json::parse(text);
    const Json &attention = json.at("attention"), &training = json.at("training");
    for (const AttentionCase& what : attention_cases(ranks, scope)) {
      const Json& row = attention.at(report.attention.size());
      report.attention.push_back(
          {what, errors_from(row.at("error")), errors_from(row.at("error_of_one_rank"))});
      if (to_json(report.attention.back()) != row)
        fail("the row of {} is another one: {}", describe(what), row.dump());
    }
    for (const TrainingCase& what : training_cases(ranks, scope)) {
      const Json& row = training.at(report.training.size());
      report.training.push_back({what, number_from(row.at("loss_difference")),
                                 row.at("same_as_keep_all").get<bool>(),
                                 row.at("same_again").get<bool>()});
      if (to_json(report.training.back()) != row)
        fail("the row of {} is another one: {}", describe(what), row.dump());
    }
    if (attention.size() != report.attention.size() || training.size() != report.training.size())
      fail("{} rows came, {} were expected", attention.size() + training.size(),
           report.attention.size() + report.training.size());
  } catch (const std::exception& e) {
    fail("verify: what {} left is not what was asked for: {}", counted(ranks, "rank"), e.what());
  }
  return report;
}

std::vector<int> parse_ranks(const std::string& text) {
  std::set<int> ranks;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    int count = 0;
    const auto [rest, error] = std::from_chars(text.data() + begin, text.data() + end, count);
    if (error != std::errc() || rest != text.data() + end || count < 1 || count > kMostRanks)
      fail_usage(
          "verify: --ranks {}: it must be numbers from 1 to {} with commas between them, like "
          "1,2,4",
          text, kMostRanks);
    ranks.insert(count);
    begin = end + 1;
  }
  return {ranks.begin(), ranks.end()};
}

ExitStatus verify_command(const std::vector<std::string>& arguments) {
  if (!arguments.empty() && arguments[0] == kOnRanks) return verify_on_ranks(arguments);
  const Arguments args(
      arguments, "verify",
      "proves on this machine that sharding does not change the answer: attention on every rank "
      "count, layout and "
      "mask against dense attention in double precision, and the losses of small models on every "
      "mesh against one "
      "rank. Exit status 1 if any bound is broken",
      {{"ranks", "N,N,...", "rank counts, each started with mpirun", "1,2,3,4"},
       {"tokens", "N", "length of the attention problems; time grows with its square",
        std::to_string(VerifyScope().tokens)},
       {"quick", "", "one case of every kind instead of all combinations"},
       {"json", "", "one JSON object instead of tables"}},
      "longspan verify --ranks 1,2,4");
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  if (!args.positional().empty())
    fail_usage("verify: '{}' is not expected: rank counts are given as --ranks 1,2,4",
               args.positional()[0]);
  const std::vector<int> rank_counts = parse_ranks(args.text("ranks"));
  const VerifyScope scope{args.integer("tokens"), args.has("quick")};
  if (scope.tokens < 16 || scope.tokens > kMostTokens)
    fail_usage(
        "verify: --tokens {}: it must be between 16 and {}; the dense attention it is compared "
        "with takes time with its square",
        scope.tokens, kMostTokens);

  const auto begin = Clock::now();
  const RowsFolder folder;
  VerifyReport report;
  {
    std::int64_t total = 0, done = 0;
    const auto rows_of = [&](int ranks) {
      return static_cast<std::int64_t>(attention_cases(ranks, scope).size() +
                                       training_cases(ranks, scope).size());
    };
    for (const int ranks : rank_counts) total += rows_of(ranks);
    Progress progress;
    for (const int ranks : rank_counts) {
      progress.update("measuring", "rows", done, total);
      VerifyReport part = start_on(ranks, scope, folder.file(ranks));
      report.attention.insert(report.attention.end(), part.attention.begin(), part.attention.end());
      report.training.insert(report.training.end(), part.training.begin(), part.training.end());
      done += rows_of(ranks);
    }
  }
  report.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const bool colour = ::isatty(STDOUT_FILENO) == 1 && std::getenv("NO_COLOR") == nullptr;
  log::line(args.has("json") ? report_json(report) : report_text(report, colour));
  return report_status(report);
}

}  // namespace longspan::launcher
