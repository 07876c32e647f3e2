// label: slow
// timeout: 400
/// verify: what the program prints and returns, the oracle it believes, and that rows are judged as
/// the contract says. That wrong sharding is found is in verify_faults_test.cpp.
#include "launcher/verify.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "launcher/verify_attention.hpp"
#include "support/attention_reference.hpp"
#include "support/process.hpp"

namespace longspan::launcher {
namespace {

using testing_support::longspan;
using Json = nlohmann::json;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Rows of two ranks as they would be if all were well.
VerifyReport good_report(const VerifyScope& scope) {
  VerifyReport report;
  const AttentionErrors errors = {3e-7, 4e-7, 4e-7, 4e-7, 2e-6};
  for (const AttentionCase& what : attention_cases(2, scope))
    report.attention.push_back({what, errors, errors});
  for (const TrainingCase& what : training_cases(2, scope))
    report.training.push_back({what, 4e-9, 4e-7, true, true, true});
  return report;
}

bool has_row(const TrainingLayout& layout, const VerifyScope& scope) {
  const auto cases = training_cases(layout.ranks(), scope);
  return std::any_of(cases.begin(), cases.end(),
                     [&](const TrainingCase& what) { return what.layout == layout; });
}

TEST(Verify, TheProgramProvesItAndSaysSoAsJson) {
  const auto run = longspan({"verify", "--ranks", "1,2,4", "--quick", "--json", "--tokens", "61"});
  ASSERT_EQ(run.status, 0) << run.err << run.out;
  const Json json = Json::parse(run.out);
  EXPECT_EQ(json.at("verdict"), "ok");
  EXPECT_EQ(json.at("broken_rows"), 0);
  EXPECT_EQ(json.at("bounds").at("fp32").at("relative"), 2e-6);
  EXPECT_EQ(json.at("bounds").at("bf16").at("relative"), 4e-3);
  EXPECT_GT(json.at("seconds"), 0);
  const VerifyScope scope{61, Extent::kQuick};
  ASSERT_EQ(json.at("attention").size(), attention_cases(1, scope).size() +
                                             attention_cases(2, scope).size() +
                                             attention_cases(4, scope).size());
  ASSERT_EQ(json.at("training").size(), training_cases(1, scope).size() +
                                            training_cases(2, scope).size() +
                                            training_cases(4, scope).size());
  std::set<std::string> schemes;
  for (const Json& row : json.at("attention")) {
    schemes.insert(row.at("scheme").get<std::string>());
    EXPECT_TRUE(row.at("error").at("keeps_agree"));
    EXPECT_TRUE(row.at("error").at("same_again"));
    EXPECT_EQ(row.at("tokens"), 61);
    EXPECT_EQ(row.at("verdict"), "ok");
    for (const char* tensor : {"output", "dq", "dk", "dv"}) {
      // Computed in fp32: an error of exactly 0 would mean that something was compared with itself.
      EXPECT_GT(row.at("error").at(tensor), 1e-9);
      EXPECT_LE(row.at("error").at(tensor), row.at("precision") == "bf16" ? 4e-3 : 2e-6);
    }
    EXPECT_LE(row.at("error").at("lse"), 1e-5);
  }
  std::set<std::string> expected = {""};  // one rank
  for (const VerifiedScheme& scheme : verified_schemes()) expected.emplace(scheme.name);
  EXPECT_EQ(schemes, expected);
  std::set<std::string> meshes;
  for (const Json& row : json.at("training")) {
    meshes.insert(fmt::format("{} {} {} {}", row.at("data").get<int>(),
                              row.at("context").get<int>(), row.at("tensor").get<int>(),
                              row.at("shard").get<std::string>()));
    EXPECT_TRUE(row.at("same_as_unsharded"));
    EXPECT_TRUE(row.at("same_as_keep_all"));
    EXPECT_TRUE(row.at("same_again"));
    EXPECT_LE(row.at("loss_difference"), 1e-5);
    EXPECT_LE(row.at("gradient_difference"), 2e-6);
  }
  for (const char* mesh : {"1 1 2 none", "2 1 2 none", "1 2 2 none", "1 1 4 none",
                           "2 1 1 parameters", "1 2 1 parameters", "4 1 1 parameters"})
    EXPECT_TRUE(meshes.contains(mesh)) << mesh;
}

TEST(Verify, TheProgramPrintsATableThatEndsWithTheVerdict) {
  const auto run = longspan({"verify", "--ranks", "2", "--quick", "--tokens", "16"});
  ASSERT_EQ(run.status, 0) << run.err << run.out;
  const VerifyScope scope{16, Extent::kQuick};
  const std::size_t count = attention_cases(2, scope).size() + training_cases(2, scope).size();
  const std::string rows = fmt::format("\nok: {0} of {0} rows keep their bounds; ", count);
  for (const char* text :
       {"ring", "allgather", "ulysses", "bf16", "causal", "documents", "2 x 1", "1 x 2 x 1 ring",
        "1 x 1 x 2", "parameters", "GPT-2-like", "Llama-like", rows.c_str()})
    EXPECT_NE(run.out.find(text), std::string::npos) << text << "\n" << run.out;
  EXPECT_EQ(run.out.find('\033'), std::string::npos) << "colours are for terminals";
}

TEST(Verify, WrongUsageIsSaidBeforeAnythingStarts) {
  const std::vector<std::vector<std::string>> wrong = {
      {"--ranks", "0"},  {"--ranks", "2,"},        {"--ranks", "1,x"},     {"--ranks", "1000"},
      {"--tokens", "3"}, {"--tokens", "99999999"}, {"--layout", "zigzag"}, {"2"},
      {"--steps", "0"},  {"--quick", "--full"}};
  for (std::vector<std::string> arguments : wrong) {
    arguments.insert(arguments.begin(), "verify");
    const auto run = longspan(arguments);
    EXPECT_EQ(run.status, 2) << arguments[1];
    EXPECT_EQ(testing_support::count_lines(run.err), 1) << run.err;
  }
  EXPECT_EQ(parse_ranks("4,1,2,2"), (std::vector<int>{1, 2, 4}));
}

TEST(Verify, TheMatrixHasEveryCombination) {
  const VerifyScope full{193, Extent::kFull};
  const auto attention = [&](int ranks) { return attention_cases(ranks, full).size(); };
  EXPECT_EQ(attention(1), 2u * 5 * 2);  // precisions, masks, heads
  // Masks, layouts, heads, precisions; and lengths with causal and full masks: one that divides,
  // two so short that a rank has only padding. Ring, allgather, ulysses serve all of it.
  EXPECT_EQ(attention(2), 3u * (6 * 2 * 3 * 2 + 1 * 2 * 2));
  EXPECT_EQ(attention(3), 3u * (6 * 2 * 3 * 2 + 3 * 2 * 2));
  // Hybrid needs a grid of ranks, and heads that its inner groups share evenly: not 3.
  EXPECT_EQ(attention(4), 3u * (6 * 2 * 3 * 2 + 3 * 2 * 2) + (6 * 2 * 2 * 2 + 3 * 2 * 2));
  // Meshes without and with a tensor axis, then three ways to share over data x context.
  EXPECT_EQ(training_layouts(1).size(), 1u);
  EXPECT_EQ(training_layouts(2).size(), (1u + 3 + 1) + 2 * 3);
  EXPECT_EQ(training_layouts(3).size(), (1u + 3) + 2 * 3);  // no three ranks share four heads
  EXPECT_EQ(training_layouts(4).size(), (1u + 3 + 4) + (1 + 3) + 1 + (3 + 2) * 3);
  for (const int ranks : {1, 2, 3, 4})
    EXPECT_EQ(training_cases(ranks, full).size(),
              training_layouts(ranks).size() * verified_models().size() * 3);  // memory.keep
  for (const Extent extent : {Extent::kQuick, Extent::kUsual})
    for (const int ranks : {1, 2, 4}) {
      const VerifyScope scope{193, extent};
      EXPECT_LT(attention_cases(ranks, scope).size(), attention(ranks));
      for (const AttentionCase& what : attention_cases(ranks, scope)) {
        const auto all = attention_cases(ranks, full);
        EXPECT_NE(std::find(all.begin(), all.end(), what), all.end()) << describe(what);
      }
      for (const TrainingLayout& layout : training_layouts(ranks)) {
        if (layout.tensor > 1 || layout.shard != model::OptimizerShard::kNone) continue;
        EXPECT_TRUE(has_row(layout, scope)) << to_string(layout);
      }
    }
}

TEST(Verify, TheUsualRowsShareWeightsAndOptimizerStates) {
  using enum model::OptimizerShard;
  for (const Extent extent : {Extent::kQuick, Extent::kUsual, Extent::kFull}) {
    const VerifyScope scope{193, extent};
    for (const TrainingLayout& layout :
         {TrainingLayout{1, 1, "", 2}, TrainingLayout{2, 1, "", 2}, TrainingLayout{1, 2, "ring", 2},
          TrainingLayout{1, 1, "", 4}, TrainingLayout{2, 1, "", 1, kParameters},
          TrainingLayout{1, 2, "ring", 1, kParameters}, TrainingLayout{4, 1, "", 1, kParameters},
          TrainingLayout{1, 4, "ring", 1, kParameters}})
      EXPECT_TRUE(has_row(layout, scope)) << to_string(layout) << " " << name_of(extent);
    if (extent == Extent::kQuick) continue;
    for (const model::OptimizerShard shard : {kStates, kGradients}) {
      EXPECT_TRUE(has_row({2, 1, "", 1, shard}, scope));
      EXPECT_TRUE(has_row({1, 2, "ring", 1, shard}, scope));
    }
  }
  EXPECT_TRUE(has_row({1, 2, "ring", 2, kGradients}, {193, Extent::kFull}));
}

TEST(Verify, WindowsLengthsAndHeadsReachOverTheBordersOfRanks) {
  for (const int ranks : {2, 3, 4, 7}) {
    bool only_padding[2] = {}, divides = false, few = false;
    for (const AttentionCase& what : attention_cases(ranks, {})) {
      const AttentionProblem problem = attention_problem(what);
      const auto last = sequence_positions(what.tokens, ranks - 1, ranks, what.layout);
      const auto shard = static_cast<std::int64_t>(last.size());
      only_padding[static_cast<int>(what.layout)] |=
          *std::max_element(last.begin(), last.end()) < 0;
      divides |= shard * ranks == what.tokens;
      few |= problem.config.heads < ranks;
      const std::int64_t window = problem.attention.window;
      if (what.mask == MaskCase::kShortWindow || what.mask == MaskCase::kFullWindow)
        EXPECT_TRUE(1 < window && window < shard);
      else if (what.mask == MaskCase::kLongWindow)
        EXPECT_TRUE(shard < window && window < what.tokens);
      else
        EXPECT_EQ(window, 0);
    }
    EXPECT_TRUE(divides && few);
    EXPECT_TRUE(ranks == 2 || (only_padding[0] && only_padding[1]));
  }
}

/// The oracle and the tests' own reference were written apart and take different ways to the
/// gradient.
TEST(Oracle, AgreesWithTheReferenceOfTheTests) {
  using enum MaskCase;
  for (const MaskCase mask : {kCausal, kFull, kShortWindow, kLongWindow, kFullWindow, kDocuments})
    for (const HeadsCase heads : {HeadsCase::kMha, HeadsCase::kGqa, HeadsCase::kFew}) {
      AttentionCase what;
      what.ranks = 3, what.mask = mask, what.heads = heads, what.tokens = 37;
      const AttentionProblem problem = attention_problem(what);
      const auto positions = sequence_positions(37, 0, 1, SequenceLayout::kContiguous);
      model::AttentionShape shape;
      shape.batch = problem.sequences, shape.queries = shape.keys = 37;
      shape.heads = problem.config.heads, shape.kv_heads = problem.config.kv_heads,
      shape.head_size = problem.config.head_size;
      shape.query_positions = shape.key_positions = positions.data();
      if (!problem.documents.empty())
        shape.query_documents = shape.key_documents = problem.documents.data();
      shape.mask = {mask != kFull && mask != kFullWindow, problem.attention.window};
      shape.scale = 0.25f;
      const auto wide = [](const std::vector<float>& x) {
        return std::vector<double>(x.begin(), x.end());
      };
      const auto expected = testing_support::attention_reference(
          shape, {wide(problem.q), wide(problem.k), wide(problem.v), wide(problem.dout)});
      const auto actual = attention_truth(problem);
      const auto difference = [](const std::vector<double>& a, const std::vector<double>& b) {
        double largest = a.size() == b.size() ? 0 : kInfinity;
        for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
          largest = std::max(largest, std::abs(a[i] - b[i]));
        return largest;
      };
      SCOPED_TRACE(name_of(mask));
      EXPECT_LT(difference(actual.output, expected.o), 1e-12);
      EXPECT_LT(difference(actual.lse, expected.lse), 1e-12);
      EXPECT_LT(difference(actual.dq, expected.dq), 1e-12);
      EXPECT_LT(difference(actual.dk, expected.dk), 1e-12);
      EXPECT_LT(difference(actual.dv, expected.dv), 1e-12);
    }
}

TEST(Oracle, KnowsInBf16OnlyTheRoundedNumbers) {
  AttentionCase what;
  what.tokens = 37, what.precision = model::Precision::kBf16;
  AttentionProblem problem = attention_problem(what);
  const auto truth = attention_truth(problem);
  for (std::vector<float>* part : {&problem.q, &problem.k, &problem.v})
    model::cpu_backend().kernels.round_to_bf16(static_cast<std::int64_t>(part->size()),
                                               part->data(), model::cpu_backend().stream);
  EXPECT_EQ(attention_truth(problem).output, truth.output);
  problem.config.precision = model::Precision::kFp32;  // already rounded
  EXPECT_EQ(attention_truth(problem).output, truth.output);
  EXPECT_EQ(attention_truth(problem).dk, truth.dk);
  what.precision = model::Precision::kFp32;
  EXPECT_NE(attention_truth(attention_problem(what)).output, truth.output);
}

TEST(Oracle, AQueryWithNothingToSeeGivesZeroAndMinusInfinity) {
  const std::vector<std::int32_t> queries = {-1, 0}, keys = {0, 1};
  model::AttentionShape shape;
  shape.batch = shape.heads = shape.kv_heads = 1, shape.queries = shape.keys = 2,
  shape.head_size = 4, shape.scale = 0.5f;
  shape.query_positions = queries.data(), shape.key_positions = keys.data();
  const std::vector<float> ones(8, 1.0f);
  const auto out = model::attention_oracle(shape, {ones, ones, ones, ones});
  EXPECT_EQ(out.lse[0], -kInfinity);
  EXPECT_DOUBLE_EQ(out.lse[1], 2.0);  // one key, 4 * 0.5
  for (std::size_t d = 0; d < 4; ++d) {
    EXPECT_EQ(out.output[d], 0);
    EXPECT_EQ(out.dq[d], 0);
    EXPECT_EQ(out.output[4 + d], 1);
  }
  const std::vector<float> bad = {0.0f, std::nanf("")};
  EXPECT_EQ(model::relative_error(bad, std::vector<double>{0.0, 0.0}), kInfinity);
  EXPECT_EQ(model::largest_error(bad, std::vector<double>{0.0, 0.0}), kInfinity);
  EXPECT_EQ(model::relative_error(bad, std::vector<double>{0.0}), kInfinity);
}

TEST(Verify, EveryBoundBreaksOnItsOwn) {
  const VerifyReport good = good_report({});
  ASSERT_EQ(report_status(good), ExitStatus::kDone);
  ASSERT_EQ(broken_rows(good), 0);
  const auto broken_by = [&](auto&& damage) {
    VerifyReport report = good;
    damage(report);
    EXPECT_EQ(broken_rows(report), 1);
    EXPECT_EQ(report_status(report), ExitStatus::kFailed);
    EXPECT_EQ(Json::parse(report_json(report)).at("verdict"), "BROKEN");
    const std::string text = report_text(report, false);
    const auto at = text.find("\nBROKEN: ");
    return at == std::string::npos ? "" : text.substr(at + 9, text.find('\n', at + 1) - at - 9);
  };
  const std::string attention = "attention, 2 ranks, ring zigzag causal MHA fp32, 193 tokens: ";
  const std::string training =
      "training, 2 x 1 x 1, optimizer.shard=none, memory.keep=block, GPT-2-like: ";
  EXPECT_EQ(broken_by([](auto& r) { r.attention[0].sharded.output = 2.1e-6; }),
            attention + "output 2.1e-06 > 2.0e-06");
  EXPECT_EQ(broken_by([](auto& r) { r.attention[0].sharded.dq = kInfinity; }),
            attention + "dQ inf > 2.0e-06");
  EXPECT_EQ(broken_by([](auto& r) { r.attention[0].sharded.dk = kNan; }),
            attention + "dK inf > 2.0e-06");
  // Good enough for the absolute bound, but worse than sharding should make it.
  EXPECT_EQ(broken_by([](auto& r) { r.attention[0].sharded.dv = 7e-7; }),
            attention + "dV 7.0e-07 > 1.5 x 4.0e-07 of one rank");
  EXPECT_EQ(broken_by([](auto& r) { r.attention[0].sharded.lse = 1.1e-5; }),
            attention + "LSE 1.1e-05 > 1.0e-05");
  EXPECT_EQ(broken_by([](auto& r) { r.attention[0].sharded.padding_is_silent = false; }),
            attention + "rows of padding are not zero");
  EXPECT_EQ(broken_by([](auto& r) { r.attention[0].sharded.keeps_agree = false; }),
            attention + "not the bits of memory.keep=all");
  EXPECT_EQ(broken_by([](auto& r) { r.attention[0].sharded.same_again = false; }),
            attention + "the second run had other bits");
  // In bf16: the bound of its own, and flat in the number of ranks.
  const auto bf16_row =
      std::find_if(good.attention.begin(), good.attention.end(),
                   [](const auto& r) { return r.what.precision == model::Precision::kBf16; });
  const auto at = static_cast<std::size_t>(bf16_row - good.attention.begin());
  const std::string bf16 = describe(bf16_row->what) + ": ";
  EXPECT_EQ(broken_by([&](auto& r) { r.attention[at].sharded.output = 4.1e-3; }),
            bf16 + "output 4.1e-03 > 4.0e-03");
  EXPECT_EQ(broken_by([&](auto& r) {
              r.attention[at].one_rank.dq = 2e-3;
              r.attention[at].sharded.dq = 2.1e-3;
            }),
            bf16 + "dQ 2.1e-03 > 1.02 x 2.0e-03 of one rank");
  EXPECT_EQ(broken_by([&](auto& r) { r.attention[at].sharded.lse = 4.1e-3; }),
            bf16 + "LSE 4.1e-03 > 4.0e-03");
  EXPECT_EQ(broken_by([](auto& r) { r.training[0].loss_difference = kNan; }),
            training + "loss inf > 1.0e-05");
  EXPECT_EQ(broken_by([](auto& r) { r.training[0].loss_difference = 1.2e-5; }),
            training + "loss 1.2e-05 > 1.0e-05");
  EXPECT_EQ(broken_by([](auto& r) { r.training[0].gradient_difference = 2.1e-6; }),
            training + "gradient 2.1e-06 > 2.0e-06");
  EXPECT_EQ(broken_by([](auto& r) { r.training[0].same_as_keep_all = false; }),
            training + "not the bits of memory.keep=all");
  EXPECT_EQ(broken_by([](auto& r) { r.training[0].same_again = false; }),
            training + "the second run had other bits");
  EXPECT_EQ(broken_by([](auto& r) { r.training[0].same_as_unsharded = false; }),
            training + "not the bits of optimizer.shard=none");
  EXPECT_EQ(report_status({}), ExitStatus::kFailed) << "nothing measured proves nothing";
}

TEST(Verify, RowsTravelUnchangedAndNoneMayBeMissing) {
  const VerifyScope scope{193, Extent::kQuick};
  VerifyReport report = good_report(scope);
  report.attention[1].sharded.dq = kInfinity;  // has no JSON of its own
  const std::string text = rows_to_text(report);
  const VerifyReport arrived = rows_from_text(text, 2, scope);
  EXPECT_EQ(rows_to_text(arrived), text);
  EXPECT_EQ(arrived.attention[1].sharded.dq, kInfinity);
  EXPECT_EQ(arrived.attention[0].sharded.dk, 4e-7);
  EXPECT_EQ(broken_rows(arrived), 1);

  EXPECT_THROW(rows_from_text("", 2, scope), Error);
  EXPECT_THROW(rows_from_text(text, 3, scope), Error);
  EXPECT_THROW(rows_from_text(text, 2, {61, Extent::kQuick}), Error);
  Json fewer = Json::parse(text), other = fewer;
  fewer["training"].erase(0);
  EXPECT_THROW(rows_from_text(fewer.dump(), 2, scope), Error);
  other["attention"].push_back(other["attention"][0]);
  EXPECT_THROW(rows_from_text(other.dump(), 2, scope), Error);
}

}  // namespace
}  // namespace longspan::launcher
