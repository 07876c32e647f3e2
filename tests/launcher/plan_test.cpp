// timeout: 120
/// plan and its search: memory to the byte, bytes by the formulas of the schemes, seconds of a
/// small case by hand, the search against every plan of a small space.
#include "launcher/plan.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <tuple>

#include "launcher/options.hpp"
#include "launcher/plan_search.hpp"
#include "parallel/context_parallel.hpp"
#include "parallel/error.hpp"
#include "support/error_of.hpp"
#include "support/process.hpp"
#include "support/round_machine.hpp"

namespace longspan::launcher {
namespace {

using model::AttentionSchemeKind;
using model::Keep;
using model::OptimizerShard;
using testing_support::longspan;

MachineDescription round_machine(int ranks_per_node = 2) {
  return testing_support::round_machine(ranks_per_node, {1e6, 1e-3}, {5e5, 2e-3});
}

RunConfig config(std::vector<std::string> more = {}) {
  more.insert(more.begin(), {"--model.layers", "3", "--model.width", "32", "--model.heads", "4",
                             "--model.vocabulary", "128", "--data.sequence-length", "256"});
  return parse_config("", more);
}

Plan plan_of(const std::vector<std::string>& settings, int ranks,
             const MachineDescription& machine = round_machine()) {
  return plan_run(resolved_for(config(settings), ranks), machine, {ranks, machine.ranks_per_node});
}

std::string refusal(const std::function<void()>& call) {
  return testing_support::error_of(call, ExitStatus::kUsage);
}

TEST(Plan, TokensOfARankAreThoseOfItsPositions) {
  for (const std::int64_t length : {17, 256, 1001})
    for (const int context : {1, 2, 3, 8})
      for (const int tensor : {1, 2, 3, 4})
        for (const char* mask : {"causal", "full"})
          for (const char* window : {"0", "10"}) {
            RunConfig c = config({"--data.sequence-length", std::to_string(length),
                                  "--attention.mask", mask, "--attention.window", window});
            const auto attention = mask_of(c.attention);
            const auto positions = sequence_positions(
                length, 0, context, layout_for(attention.causal, attention.window), tensor);
            EXPECT_EQ(tokens_of_rank(c, {1, context, tensor}),
                      static_cast<std::int64_t>(positions.size()))
                << length << " " << context << " " << tensor << " " << mask << " " << window;
          }
}

TEST(Plan, KindsOfMemoryAddUpToWhatARunPredicts) {
  for (const char* shard : {"none", "states", "gradients", "parameters"})
    for (const char* keep : {"all", "attention", "block"})
      for (const char* precision : {"fp32", "bf16"})
        for (const auto& [context, tensor] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}}) {
          const Plan p =
              plan_of({"--mesh.context", std::to_string(context), "--mesh.tensor",
                       std::to_string(tensor), "--optimizer.shard", shard, "--memory.keep", keep,
                       "--model.precision", precision, "--checkpoint.every", "10"},
                      8);
          EXPECT_EQ(
              p.memory.arrays(),
              model::memory_estimate(p.config.model, p.config.memory, p.share, p.keep).total());
          EXPECT_EQ(p.memory.total(), p.memory.arrays() + 1000);
          EXPECT_GT(p.memory.staging, 0);
          const std::int64_t count = model::parameter_count(p.config.model, tensor);
          const std::int64_t whole = 4 * count;
          const bool shared_gradients =
              shard == std::string("gradients") || shard == std::string("parameters");
          EXPECT_EQ(p.memory.weights == whole, shard != std::string("parameters"));
          EXPECT_EQ(p.memory.gradients == whole, !shared_gradients);
          EXPECT_EQ(p.memory.moments == 2 * whole, shard == std::string("none"));
        }
}

TEST(Plan, BytesAreThoseOfTheSchemes) {
  for (const auto& [name, scheme] : {std::pair{"ring", AttentionSchemeKind::kRing},
                                     {"allgather", AttentionSchemeKind::kAllgather},
                                     {"ulysses", AttentionSchemeKind::kUlysses}}) {
    // Two micro-batches of two sequences.
    const Plan p = plan_of({"--mesh.context", "2", "--attention.scheme", name, "--memory.keep",
                            "attention", "--train.micro-batch", "2", "--train.global-batch", "4"},
                           2);
    const auto traffic = attention_traffic(scheme, geometry_of(p.config, 1), {2, 256, 2}, 0);
    EXPECT_EQ(p.bytes.context, 2 * 3.0 * static_cast<double>(traffic.total() + traffic.again));
    EXPECT_GT(p.bytes.context, 0);
  }
  // parallel/tensor_parallel.hpp: 10 U a layer, 2 U embedding, 2 U + 12 (T-1) n loss.
  const Plan p = plan_of({"--mesh.tensor", "2", "--memory.keep", "all"}, 2);
  const double unit = 0.5 * 256 * 32 * 4;
  EXPECT_EQ(p.bytes.tensor, (10 * 3 + 4) * unit + 12 * 256);
}

TEST(Plan, SecondsOfASmallCaseByHand) {
  const Plan one = plan_of({"--memory.keep", "all", "--model.mlp-width", "64"}, 1);
  // Tokens 256; a layer's weights 32*32*2 + 32*64 + 32*128 + 64*32 = 4 d^2 + 3 d f.
  const double weights = 4 * 32 * 32 + 3 * 32 * 64;
  EXPECT_NEAR(one.seconds.linear, 3 * 6 * weights * 256 / 1e9, 1e-12);
  const double pairs = 256 * 257 / 2;
  const double forward = 4 * pairs * 32 / 1e8, backward = 8 * pairs * 32 / 2e8;
  EXPECT_NEAR(one.seconds.attention, 3 * (forward + backward), 1e-12);
  // keep=all computes SwiGLU again: reads 2 f, writes f; and two norms: read d, write d.
  EXPECT_NEAR(one.seconds.recompute, 3 * 4.0 * 256 * (3 * 64 + 4 * 32) / 1e9, 1e-12);
  EXPECT_EQ(one.seconds.exposed(), 0);
  EXPECT_NEAR(one.seconds.loss, 6.0 * 256 * 32 * 128 / 1e9 + 3 * 4.0 * 256 * 128 / 1e9, 1e-12);
  EXPECT_NEAR(one.tokens_per_second, 256 / one.step_seconds(), 1e-6);
  EXPECT_NEAR(one.mfu,
              (6 * (3 * weights + 32 * 128) * 256 + 12 * pairs * 32 * 3) / one.step_seconds() / 2e9,
              1e-9);
  // block computes attention again, attention does not.
  const Plan block = plan_of({"--memory.keep", "block", "--model.mlp-width", "64"}, 1),
             kept = plan_of({"--memory.keep", "attention", "--model.mlp-width", "64"}, 1);
  EXPECT_NEAR(block.seconds.recompute - kept.seconds.recompute, 3 * forward, 1e-12);

  // Two ranks' ring: one hop forward, behind half the compute; 128 rows of 2 * 32 floats.
  const Plan ring = plan_of({"--mesh.context", "2", "--attention.scheme", "ring", "--memory.keep",
                             "all", "--model.mlp-width", "64"},
                            2);
  const double block_bytes = 128 * 64 * 4;
  const double out = std::max(0.0, block_bytes / 1e6 + 1e-3 - forward / 2 / 2);
  // Backward: behind the first half only keys and values travel, behind the second the gradients
  // of the first; those of the second behind nothing.
  const double message = block_bytes / 1e6 + 1e-3;
  const double back = 2 * std::max(0.0, message - backward / 2 / 2) + message;
  EXPECT_NEAR(ring.seconds.context_exposed, 3 * (out + back), 1e-9);
  EXPECT_GT(out, 0);
  EXPECT_NEAR(ring.seconds.attention, one.seconds.attention / 2, 1e-12);
}

TEST(Plan, WhatExchangesTakeFromTheCoresIsHiddenByNothing) {
  MachineDescription machine = round_machine(), copying = machine;
  copying.inside.core_seconds_per_byte = 3e-7;
  copying.inside.tensor_core_seconds_per_byte = 2e-7;
  struct Case {
    std::string axis, scheme;
    int ranks;
    double per_byte;
    double StepBytes::*bytes;
    double StepSeconds::*seconds;
  };
  // Of tensor ranks and of exchanged heads the whole arrays count, of which N ranks send (N-1)/N.
  const auto context = &StepBytes::context, tensor = &StepBytes::tensor,
             gradients = &StepBytes::gradients;
  const auto in_context = &StepSeconds::context_exposed, in_tensor = &StepSeconds::tensor_exposed,
             in_gradients = &StepSeconds::gradient_exposed;
  for (const Case& one : {Case{"context", "ring", 2, 3e-7, context, in_context},
                          {"context", "allgather", 4, 3e-7, context, in_context},
                          {"context", "ulysses", 2, 2 * 3e-7, context, in_context},
                          {"context", "ulysses", 4, 4 / 3.0 * 3e-7, context, in_context},
                          {"tensor", "ring", 2, 2 * 2e-7, tensor, in_tensor},
                          {"tensor", "ring", 4, 4 / 3.0 * 2e-7, tensor, in_tensor},
                          {"data", "ring", 2, 3e-7, gradients, in_gradients}}) {
    const std::vector<std::string> settings{"--mesh." + one.axis,   std::to_string(one.ranks),
                                            "--attention.scheme",   one.scheme,
                                            "--train.global-batch", "2"};
    machine.ranks_per_node = copying.ranks_per_node = one.ranks;
    const Plan without = plan_of(settings, one.ranks, machine),
               with = plan_of(settings, one.ranks, copying);
    EXPECT_GT(with.bytes.*one.bytes, 0) << one.axis;
    EXPECT_NEAR(with.seconds.*one.seconds - without.seconds.*one.seconds,
                one.per_byte * (with.bytes.*one.bytes), 1e-12)
        << one.axis << " " << one.scheme << " " << one.ranks;
  }
}

/// Hybrid: of the inner groups' heads the whole arrays, of the ring's keys and values what travels.
TEST(Plan, OfHybridOnlyTheHeadsCountWhole) {
  StepPieces p;
  p.context = 4, p.inner = 2, p.scheme = AttentionSchemeKind::kHybrid;
  p.context_forward = 30, p.context_backward = 50, p.heads_forward = 10, p.heads_backward = 10;
  EXPECT_DOUBLE_EQ(context_array_bytes(p, {160, 0, 0}), 160 * 1.25);
  p.inner = 1;
  EXPECT_EQ(context_array_bytes(p, {160, 0, 0}), 160);
}

/// Attention's rate is that of the keys of one call: of a rank's block in a ring and with
/// allgather, of all with Ulysses.
TEST(Plan, AttentionGoesByTheKeysOfACall) {
  MachineDescription machine = round_machine();
  machine.fp32.attention_forward_flops = {{128, 1e8}, {256, 4e8}};
  const auto attention = [&](const char* scheme) {
    return plan_of({"--mesh.context", "2", "--attention.scheme", scheme}, 2, machine)
        .seconds.attention;
  };
  const double flops = 4.0 * 256 * 257 / 2 * 32 / 2;
  EXPECT_NEAR(attention("ring") - attention("ulysses"), 3 * flops * (1 / 1e8 - 1 / 4e8), 1e-12);
  EXPECT_EQ(attention("ring"), attention("allgather"));
}

TEST(Plan, LinksBetweenNodesCountWhereGroupsCrossThem) {
  const std::vector<std::string> settings{"--mesh.context", "2", "--attention.scheme", "allgather"};
  MachineDescription far = round_machine(1), near = round_machine(2);
  EXPECT_GT(plan_of(settings, 2, far).seconds.context_exposed,
            plan_of(settings, 2, near).seconds.context_exposed);
  EXPECT_TRUE((Placement{8, 4}.inside(2, 2)));
  EXPECT_FALSE((Placement{8, 4}.inside(4, 2)));
  EXPECT_FALSE((Placement{12, 4}.inside(3, 1)));
  EXPECT_TRUE((Placement{3, 4}.inside(3, 1)));
  EXPECT_EQ((Placement{12, 4}.context_per_node({2, 6, 1})), 2);
}

TEST(Plan, NothingGetsSlowerOnABetterMachine) {
  for (const char* scheme : {"ring", "allgather", "ulysses", "hybrid"})
    for (const char* keep : {"all", "attention", "block"}) {
      const std::vector<std::string> settings{
          "--mesh.context",       "4",  "--mesh.tensor",     "2",      "--attention.scheme", scheme,
          "--memory.keep",        keep, "--optimizer.shard", "states", "--checkpoint.every", "5",
          "--train.global-batch", "4"};
      const MachineDescription m = round_machine(4);
      const double now = plan_of(settings, 16, m).step_seconds();
      const auto then = [&](auto change) {
        MachineDescription better = m;
        change(better);
        return plan_of(settings, 16, better).step_seconds();
      };
      EXPECT_LT(then([](auto& b) { b.fp32.linear_flops *= 2; }), now);
      EXPECT_LE(then([](auto& b) { b.fp32.attention_forward_flops *= 2; }), now);
      EXPECT_LE(then([](auto& b) { b.inside.bandwidth *= 2; }), now);
      EXPECT_LE(then([](auto& b) { b.between.bandwidth *= 2; }), now);
      EXPECT_LE(then([](auto& b) { b.between.latency /= 2; }), now);
      EXPECT_LT(then([](auto& b) { b.pointwise_bandwidth *= 2; }), now);
    }
}

TEST(Plan, CostsFollowThePricesGiven) {
  MachineDescription m = round_machine();
  EXPECT_EQ(plan_of({}, 2, m).watts, 0);
  m.watts_per_rank = 100, m.watts_per_node = 300, m.pue = 1.2;
  m.price_per_rank_hour = 3, m.grams_co2_per_kwh = 400;
  const Plan p = plan_of({"--train.steps", "1000"}, 4, m);
  EXPECT_NEAR(p.watts, 1.2 * (4 * 100 + 2 * 300), 1e-9);
  EXPECT_NEAR(p.run_seconds, 1000 * p.step_seconds(), 1e-9);
  EXPECT_NEAR(p.cost, 3 * 4 * p.run_seconds / 3600, 1e-9);
  EXPECT_NEAR(p.kilograms_co2, p.watts / 1000 * p.run_seconds / 3600 * 0.4, 1e-12);
}

TEST(Plan, AdviceIsWhatTheAlternativeTakes) {
  const MachineDescription m = round_machine(1);
  const Plan p = plan_of(
      {"--mesh.context", "2", "--attention.scheme", "allgather", "--memory.keep", "block"}, 2, m);
  const auto advice = advise(p, m);
  const auto keeps = std::find_if(advice.begin(), advice.end(),
                                  [](const Advice& a) { return a.change == "memory.keep=all"; });
  ASSERT_NE(keeps, advice.end());
  const Plan better = plan_of(
      {"--mesh.context", "2", "--attention.scheme", "allgather", "--memory.keep", "all"}, 2, m);
  EXPECT_NEAR(keeps->saved, 1 - better.step_seconds() / p.step_seconds(), 1e-9);
  EXPECT_TRUE(std::is_sorted(advice.begin(), advice.end(),
                             [](const Advice& a, const Advice& b) { return a.saved > b.saved; }));
}

TEST(Plan, AnImpossibleBudgetNamesTheSmallestAndWhatWouldFit) {
  const auto settings = [](const std::string& budget) {
    return std::vector<std::string>{"--mesh.data",          "4",   "--train.micro-batch", "2",
                                    "--train.global-batch", "8",   "--memory.keep",       "auto",
                                    "--memory.budget",      budget};
  };
  const std::string text = refusal([&] { plan_of(settings("2300k"), 4); });
  EXPECT_NE(text.find("the smallest memory.budget that would do is "), std::string::npos) << text;
  EXPECT_NE(text.find("of other settings optimizer.shard=parameters"), std::string::npos) << text;
  MachineDescription small = round_machine();
  small.memory_bytes = 900e3;
  const std::string full = refusal([&] {
    plan_of({"--train.micro-batch", "2", "--memory.keep", "all"}, 2, small);
  });
  EXPECT_NE(full.find("machine round gives a rank 0.9 MiB"), std::string::npos) << full;
  EXPECT_NE(full.find("the smallest memory.budget that would do is "), std::string::npos) << full;
}

TEST(Plan, AMachineWithoutRatesOfThePrecisionIsRefused) {
  MachineDescription m = round_machine();
  m.bf16 = {};
  const auto text = refusal([&] { plan_of({"--model.precision", "bf16"}, 1, m); });
  EXPECT_NE(text.find("has no rates of model.precision=bf16"), std::string::npos) << text;
}

/// Every uniform plan of 8 ranks, put together without the search.
TEST(PlanSearch, FindsTheBestOfASmallSpace) {
  RunConfig c =
      config({"--train.global-batch", "4", "--memory.budget", "1200k", "--model.kv-heads", "2"});
  const MachineDescription m = round_machine(4);
  const Placement placement{8, 4};
  const SearchResult found = search_plans(c, m, placement);
  ASSERT_FALSE(found.fitting.empty());

  double best = INFINITY;
  std::int64_t fitting = 0, too_large = 0;
  for (const int data : {1, 2, 4, 8})
    for (const int context : {1, 2, 4, 8})
      for (const int tensor : {1, 2, 4, 8})
        for (const auto scheme : {AttentionSchemeKind::kRing, AttentionSchemeKind::kAllgather,
                                  AttentionSchemeKind::kUlysses, AttentionSchemeKind::kHybrid})
          for (const auto shard : {OptimizerShard::kNone, OptimizerShard::kStates,
                                   OptimizerShard::kGradients, OptimizerShard::kParameters})
            for (const std::int64_t micro : {1, 2, 3, 4})
              for (const Keep keep : {Keep::kAll, Keep::kAttention, Keep::kBlock}) {
                if (data * context * tensor != 8) continue;
                if (context == 1 && scheme != AttentionSchemeKind::kRing) continue;
                if (data * context == 1 && shard != OptimizerShard::kNone) continue;
                RunConfig one = c;
                one.mesh = {data, context, tensor, false};
                one.attention.scheme = scheme, one.optimizer.shard = shard;
                one.train.micro_batch = micro, one.memory.keep = keep;
                one.memory.budget = 0;  // looked at below
                Plan p;
                try {
                  p = plan_run(resolved_for(one, 8), m, placement);
                } catch (const Error&) {
                  continue;
                }
                if (p.scheme.scheme != scheme) continue;  // hybrid without inner groups
                if (scheme == AttentionSchemeKind::kUlysses && context > 4 / tensor) continue;
                if (p.memory.arrays() > c.memory.budget) {
                  ++too_large;
                  continue;
                }
                ++fitting;
                best = std::min(best, p.step_seconds());
              }
  std::int64_t uniform = 0;
  double least = INFINITY;
  for (const Candidate& candidate : found.fitting) {
    const Plan p = plan_run(resolved_for(with_candidate(c, candidate), 8), m, placement);
    if (candidate.keep == Keep::kAuto) {
      EXPECT_LE(p.memory.arrays(), c.memory.budget);
      EXPECT_LE(p.memory.arrays(), candidate.memory_bytes + c.memory.budget / 10);
      continue;
    }
    ++uniform;
    least = std::min(least, candidate.step_seconds);
    EXPECT_EQ(p.memory.arrays(), candidate.memory_bytes);
    EXPECT_DOUBLE_EQ(p.step_seconds(), candidate.step_seconds);
  }
  EXPECT_EQ(uniform, fitting);
  EXPECT_EQ(found.rejected.at("more memory than a rank may use"), too_large);
  EXPECT_DOUBLE_EQ(least, best);
  EXPECT_GT(too_large, 10);
  EXPECT_LT(uniform, static_cast<std::int64_t>(found.fitting.size())) << "no mix was tried";
  EXPECT_TRUE(std::is_sorted(
      found.fitting.begin(), found.fitting.end(),
      [](const Candidate& a, const Candidate& b) { return a.step_seconds < b.step_seconds; }));
}

TEST(PlanSearch, MemoryIsThatOfThePlansWithFilesAndWindowsToo) {
  for (const auto& [name, value] : {std::pair{"--memory.offload", "file"},
                                    {"--attention.window", "40"},
                                    {"--checkpoint.every", "3"}}) {
    RunConfig c = config({"--train.global-batch", "4", name, value});
    const MachineDescription m = round_machine(4);
    const SearchResult found = search_plans(c, m, {4, 4});
    EXPECT_GT(found.fitting.size(), 50u);
    for (const Candidate& candidate : found.fitting)
      EXPECT_EQ(plan_run(resolved_for(with_candidate(c, candidate), 4), m, {4, 4}).memory.arrays(),
                candidate.memory_bytes)
          << name;
  }
}

TEST(PlanSearch, WhereNothingFitsTheSmallestIsNamed) {
  RunConfig c = config({"--train.global-batch", "4", "--memory.budget", "10k"});
  const MachineDescription m = round_machine(4);
  const auto text = refusal([&] { search_text(search_plans(c, m, {8, 4}), c, m, {8, 4}, 5); });
  EXPECT_NE(text.find("the smallest that fits is memory.budget="), std::string::npos) << text;
  c.memory.budget = search_plans(c, m, {8, 4}).smallest.memory_bytes;
  EXPECT_FALSE(search_plans(c, m, {8, 4}).fitting.empty());
  c.memory.budget -= 1;
  EXPECT_TRUE(search_plans(c, m, {8, 4}).fitting.empty());
  const auto vague = refusal([&] { search_plans(config(), m, {8, 4}); });
  EXPECT_NE(vague.find("set train.global-batch"), std::string::npos) << vague;
}

TEST(PlanSearch, SixteenThousandRanksAreQuick) {
  RunConfig c = parse_config(LONGSPAN_SOURCE_DIR "/configs/llama-8b-1m.ini",
                             {"--train.global-batch", "1024", "--memory.budget", "20g"});
  const MachineDescription m = load_machine(LONGSPAN_SOURCE_DIR "/configs/machines/h100-ndr.ini");
  const auto begin = std::chrono::steady_clock::now();
  const SearchResult result = search_plans(c, m, {16384, 8});
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_GT(result.looked_at, 5000);
  EXPECT_LT(seconds.count(), 10);  // asked: 1 s on a quiet machine
  RecordProperty("search_seconds", std::to_string(seconds.count()));
  std::printf("search of 16384 ranks: %.3f s, %ld ways\n", seconds.count(),
              static_cast<long>(result.looked_at));
}

TEST(Plan, OneIsMadeInMilliseconds) {
  RunConfig c = parse_config(LONGSPAN_SOURCE_DIR "/configs/llama-8b-1m.ini",
                             {"--mesh.context", "64", "--memory.keep", "auto"});
  const MachineDescription m = load_machine(LONGSPAN_SOURCE_DIR "/configs/machines/h200-ndr.ini");
  c.optimizer.shard = OptimizerShard::kParameters;
  const auto begin = std::chrono::steady_clock::now();
  const Plan plan = plan_run(resolved_for(c, 64), m, {64, 8});
  const auto advice = advise(plan, m);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_GT(plan.step_seconds(), 0);
  EXPECT_FALSE(advice.empty());
  EXPECT_LT(seconds.count(), 1);  // asked: 20 ms on a quiet machine
  std::printf("a plan with memory.keep=auto and its advice: %.4f s\n", seconds.count());
}

TEST(PlanCommand, JsonHasWhatScriptsAskFor) {
  const auto result =
      longspan({"plan", "--config", LONGSPAN_SOURCE_DIR "/configs/llama-1b-128k.ini", "--machine",
                "h100-ndr", "--nodes", "4", "--price", "2", "--co2", "300", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  double memory = 0, seconds = 0;
  for (const auto& [name, value] : json["memory"].items())
    if (name != "arrays") memory += value.get<double>();
  for (const auto& [name, value] : json["seconds"].items()) seconds += value.get<double>();
  EXPECT_EQ(json["memory_per_rank_bytes"].get<double>(), memory);
  EXPECT_NEAR(json["step_seconds"].get<double>(), seconds, 1e-9 * seconds);
  EXPECT_NEAR(json["tokens_per_second"].get<double>(), 32 * 131072 / seconds, 1);
  EXPECT_GT(json["cost"].get<double>(), 0);
  EXPECT_GT(json["kilograms_co2"].get<double>(), 0);
}

TEST(PlanCommand, TheBestOfASearchIsReadyToUse) {
  const std::vector<std::string> base{
      "plan",      "--config", LONGSPAN_SOURCE_DIR "/configs/llama-1b-128k.ini",
      "--machine", "h200-ndr", "--nodes",
      "2",         "--json"};
  auto search = base;
  search.push_back("--search");
  const auto found = longspan(search);
  ASSERT_EQ(found.status, 0) << found.err;
  const auto best = nlohmann::json::parse(found.out)["best"][0];
  auto again = base;
  for (const auto& [name, value] : best["settings"].items()) {
    again.push_back("--" + name);
    again.push_back(value.get<std::string>());
  }
  const auto planned = longspan(again);
  ASSERT_EQ(planned.status, 0) << planned.err;
  EXPECT_NEAR(nlohmann::json::parse(planned.out)["step_seconds"].get<double>(),
              best["step_seconds"].get<double>(), 1e-3 * best["step_seconds"].get<double>());
}

TEST(PlanCommand, RefusesToBeVague) {
  const auto says = [](std::vector<std::string> arguments, const std::string& what) {
    arguments.insert(arguments.begin(), "plan");
    const auto result = longspan(arguments);
    EXPECT_EQ(result.status, 2);
    EXPECT_NE(result.err.find(what), std::string::npos) << result.err;
  };
  says({}, "--machine is missing");
  says({"--machine", "cray"}, "machine cray: there is no such description; there are a100-hdr");
  says({"--machine", "h100-ndr"}, "model.vocabulary is 0 (the dataset's) and data.path is not set");
  says({"--machine", "h100-ndr", "--data.path", "/nowhere.h5"},
       "data.path=/nowhere.h5 does not exist");
  says({"--machine", "h100-ndr", "--nodes", "0"}, "--nodes 0");
  says({"--machine", "h100-ndr", "--model.vocabulary", "256"},
       "has no rates of model.precision=fp32");
}

}  // namespace
}  // namespace longspan::launcher
