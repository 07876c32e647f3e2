/// The rows of `longspan verify` as JSON: for people's programs, and on their way from the ranks.
#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "launcher/machine.hpp"
#include "launcher/progress.hpp"
#include "launcher/verify.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Infinity has no JSON: null.
Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}
double number_from(const Json& json) {
  return json.is_null() ? kInfinity : json.get<double>();
}

Json to_json(const AttentionErrors& e) {
  return {{"output", number(e.output)},   {"dq", number(e.dq)},
          {"dk", number(e.dk)},           {"dv", number(e.dv)},
          {"lse", number(e.lse)},         {"padding_is_silent", e.padding_is_silent},
          {"keeps_agree", e.keeps_agree}, {"same_again", e.same_again}};
}
AttentionErrors errors_from(const Json& json) {
  return {number_from(json.at("output")),     number_from(json.at("dq")),
          number_from(json.at("dk")),         number_from(json.at("dv")),
          number_from(json.at("lse")),        json.at("padding_is_silent").get<bool>(),
          json.at("keeps_agree").get<bool>(), json.at("same_again").get<bool>()};
}

Json to_json(const AttentionBounds& b) {
  return {{"relative", b.relative}, {"lse", b.lse}, {"times_one_rank", b.times_one_rank}};
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
               {"scheme", what.ranks == 1 ? "" : what.scheme},
               {"layout", layout_of(what)},
               {"mask", name_of(what.mask)},
               {"heads", name_of(what.heads)},
               {"precision", name_of(what.precision)},
               {"tokens", what.tokens},
               {"error", to_json(row.sharded)},
               {"error_of_one_rank", to_json(row.one_rank)},
               {"times_one_rank", number(times_one_rank(row))}};
  add_verdict(json, row);
  return json;
}

Json to_json(const TrainingRow& row) {
  const TrainingCase& what = row.what;
  Json json = {{"ranks", what.layout.ranks()},
               {"data", what.layout.data},
               {"context", what.layout.context},
               {"tensor", what.layout.tensor},
               {"scheme", what.layout.scheme},
               {"shard", name_of(what.layout.shard)},
               {"keep", name_of(what.keep)},
               {"model", what.model},
               {"loss_difference", number(row.loss_difference)},
               {"gradient_difference", number(row.gradient_difference)},
               {"same_as_keep_all", row.same_as_keep_all},
               {"same_again", row.same_again},
               {"same_as_unsharded", row.same_as_unsharded}};
  add_verdict(json, row);
  return json;
}

template <class Row>
Json to_json(const std::vector<Row>& rows) {
  Json json = Json::array();
  for (const Row& row : rows) json.push_back(to_json(row));
  return json;
}

}  // namespace

std::string report_json(const VerifyReport& report) {
  const Json json = {{"verdict", report_status(report) == ExitStatus::kDone ? "ok" : "BROKEN"},
                     {"broken_rows", broken_rows(report)},
                     {"bounds",
                      {{"fp32", to_json(kFp32Bounds)},
                       {"bf16", to_json(kBf16Bounds)},
                       {"loss", kLossBound},
                       {"gradient", kGradientBound}}},
                     {"attention", to_json(report.attention)},
                     {"training", to_json(report.training)},
                     {"training_steps", report.steps},
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
      report.training.push_back(
          {what, number_from(row.at("loss_difference")), number_from(row.at("gradient_difference")),
           row.at("same_as_keep_all").get<bool>(), row.at("same_again").get<bool>(),
           row.at("same_as_unsharded").get<bool>()});
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

}  // namespace longspan::launcher
