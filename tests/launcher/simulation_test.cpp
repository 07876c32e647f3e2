// timeout: 120
/// plan --simulate: against the closed formulas where they are exact, against small cases by hand
/// where they are not, and what jitter, slow ranks and shared adapters do.
#include "launcher/simulation.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "launcher/options.hpp"
#include "model/flops.hpp"
#include "parallel/error.hpp"
#include "support/error_of.hpp"
#include "support/process.hpp"
#include "support/round_machine.hpp"

namespace longspan::launcher {
namespace {

using testing_support::longspan;

MachineDescription round_machine(int ranks_per_node = 2) {
  return testing_support::round_machine(ranks_per_node, {1e7, 1e-4}, {5e6, 2e-4});
}

Plan plan_of(std::vector<std::string> settings, int ranks, const MachineDescription& machine) {
  settings.insert(settings.begin(),
                  {"--model.layers", "3", "--model.width", "32", "--model.heads", "4",
                   "--model.vocabulary", "128", "--data.sequence-length", "256"});
  return plan_run(resolved_for(parse_config("", settings), ranks), machine,
                  {ranks, machine.ranks_per_node});
}

SimulationOptions alone() {
  SimulationOptions options;
  options.contention = false;
  return options;
}

std::string refusal(const std::function<void()>& call) {
  return testing_support::error_of(call, ExitStatus::kUsage);
}

/// Links from those that hide everything to those that hide nothing.
TEST(Simulation, IsTheClosedFormulaWithoutJitterAndContention) {
  int compared = 0;
  for (const double bandwidth : {1e5, 1e6, 1e7, 1e9})
    for (const char* scheme : {"ring", "allgather", "ulysses", "hybrid"})
      for (const char* keep : {"all", "attention", "block"})
        for (const char* window : {"0", "40"})
          for (const auto& [context, tensor] : {std::pair{1, 2}, {2, 1}, {4, 1}, {4, 2}, {7, 1}})
            for (const int micro_batches : {1, 3}) {
              if (context == 7 && scheme == std::string("hybrid")) continue;
              MachineDescription m = round_machine(2);
              m.inside.bandwidth = 2 * bandwidth, m.between.bandwidth = bandwidth;
              const int ranks = 2 * context * tensor;
              const Plan p = plan_of({"--mesh.context", std::to_string(context), "--mesh.tensor",
                                      std::to_string(tensor), "--attention.scheme", scheme,
                                      "--memory.keep", keep, "--attention.window", window,
                                      "--train.global-batch", std::to_string(2 * micro_batches)},
                                     ranks, m);
              const SimulationResult s = simulate(p, m, alone());
              const auto near = [&](double simulated, double formula, const char* part) {
                EXPECT_NEAR(simulated, formula, 1e-6 * p.step_seconds() + 1e-12)
                    << part << ": " << scheme << " " << keep << " context " << context << " tensor "
                    << tensor << " window " << window << " bandwidth " << bandwidth;
              };
              near(s.exposed.context, p.seconds.context_exposed, "context");
              near(s.exposed.tensor, p.seconds.tensor_exposed, "tensor");
              near(s.exposed.coordination, p.seconds.coordination, "coordination");
              // Gradients: the formula takes all units as equally large; by hand below.
              near(s.mean() - s.exposed.gradients,
                   p.step_seconds() - p.seconds.gradient_exposed - p.seconds.checkpoint, "step");
              ++compared;
            }
  EXPECT_GT(compared, 800);
}

/// optimizer.shard=none, two data ranks: units are summed one after the other from the end of the
/// model on, each when its backward is over.
TEST(Simulation, GradientsFollowTheUnitsOfTheModel) {
  for (const double bandwidth : {1e5, 3e6, 1e8}) {
    MachineDescription m = round_machine(1);
    m.between.bandwidth = bandwidth;
    const Plan p = plan_of({"--memory.keep", "all", "--model.norm", "rmsnorm"}, 2, m);
    const SimulationResult s = simulate(p, m, alone());
    const auto count = [&](int layers) {
      model::ModelConfig c = p.config.model;
      c.layers = layers;
      return static_cast<double>(model::parameter_count(c));
    };
    // Tied: the embedding has the output's weights.
    const double embedding = 128 * 32, layer = count(1) - count(0), end = count(0) - embedding;
    const auto wire = [&](double elements) { return 4 * elements / bandwidth + 2 * 2e-4; };
    const StepPieces pieces = step_pieces(p.config, m, p.placement, {2, 1, 1}, p.share,
                                          context_traffic(p.config, {2, 1, 1}, p.scheme.scheme, 1));
    const double backward = pieces.activation + 2 * pieces.products.all() +
                            pieces.attention_backward + pieces.pointwise_backward;
    double now = 0, link = wire(end);
    for (int i = 0; i < 3; ++i) {
      now += backward;
      link = std::max(link, now) + wire(layer);
    }
    link = std::max(link, now) + wire(embedding);
    EXPECT_NEAR(s.exposed.gradients, std::max(0.0, link - now), 1e-9) << bandwidth;
    // The formula has the same bytes and hides them behind the same compute.
    EXPECT_NEAR(s.mean(), p.step_seconds() - p.seconds.checkpoint, 0.15 * p.step_seconds());
  }
}

TEST(Simulation, ShardedOptimizersSendWhatTheFormulaSays) {
  MachineDescription m = round_machine(1);
  m.between = {1e4, 0};  // all time is on the link
  for (const char* shard : {"none", "states", "gradients", "parameters"})
    for (const int micro_batches : {1, 2}) {
      const Plan p = plan_of({"--optimizer.shard", shard, "--memory.keep", "all",
                              "--train.global-batch", std::to_string(4 * micro_batches)},
                             4, m);
      const SimulationResult s = simulate(p, m, alone());
      double bytes = p.bytes.gradients;
      // The formula gathers everything twice; the last layer and the end stay between forward and
      // backward.
      const StepPieces pieces =
          step_pieces(p.config, m, p.placement, {4, 1, 1}, p.share,
                      context_traffic(p.config, {4, 1, 1}, p.scheme.scheme, 1));
      if (shard == std::string("parameters"))
        bytes -= micro_batches * 3.0 * (pieces.layer_elements + pieces.end_elements);
      EXPECT_NEAR(s.mean(), bytes / 1e4, 0.02 * s.mean()) << shard << " " << micro_batches;
    }
}

TEST(Simulation, RanksThatSendAtOnceShareTheirAdapter) {
  MachineDescription m = round_machine(4);
  m.between.bandwidth = 1e5, m.between.latency = 0;  // nothing hides
  // Many micro-batches: only the last one's backward shares adapters with the gradients.
  const std::vector<std::string> rings{"--mesh.context",       "2",    "--mesh.tensor", "4",
                                       "--attention.scheme",   "ring", "--memory.keep", "all",
                                       "--train.global-batch", "64"};
  // Four rings of two, all over the network at the same time: each has a quarter of the adapter.
  const Plan four = plan_of(rings, 8, m);
  MachineDescription one_adapter = m;
  one_adapter.adapters_per_node = 1;
  const double closed = four.seconds.context_exposed;
  EXPECT_NEAR(simulate(four, m, {}).exposed.context, closed, 0.01 * closed);
  EXPECT_NEAR(simulate(four, one_adapter, {}).exposed.context, closed, 0.01 * closed);
  // One ring of eight: only two of its hops leave a node, and each has the shared adapter alone.
  const std::vector<std::string> ring{"--mesh.context", "8",   "--attention.scheme",   "ring",
                                      "--memory.keep",  "all", "--train.global-batch", "64"};
  const Plan eight = plan_of(ring, 8, m);
  const double own = simulate(eight, m, {}).exposed.context,
               shared = simulate(eight, one_adapter, {}).exposed.context;
  EXPECT_LT(own, 1.01 * eight.seconds.context_exposed);
  EXPECT_GT(own, 0.8 * eight.seconds.context_exposed) << "the slowest hop sets the pace";
  EXPECT_LT(shared, 0.5 * own);
}

TEST(Simulation, AxesShareAdaptersToo) {
  MachineDescription m = round_machine(1);
  m.between.bandwidth = 1e5;
  const Plan p = plan_of({"--mesh.context", "2", "--mesh.data", "2", "--attention.scheme", "ring",
                          "--optimizer.shard", "states"},
                         4, m);
  const SimulationResult together = simulate(p, m, {}), apart = simulate(p, m, alone());
  EXPECT_GT(together.mean(), 1.02 * apart.mean());
  // Never more than one after the other.
  EXPECT_LT(together.mean(), apart.mean() + p.bytes.gradients / 1e5);
}

TEST(Simulation, ASlowRankHoldsEverybodyUp) {
  MachineDescription m = round_machine(4);
  m.inside = m.between = {1e13, 0};
  const Plan p = plan_of({"--mesh.context", "4", "--attention.scheme", "ring"}, 8, m);
  const double usual = simulate(p, m, {}).mean();
  SimulationOptions options;
  options.stragglers = {{5, 2.0}};
  const SimulationResult slow = simulate(p, m, options);
  EXPECT_NEAR(slow.mean(), 2 * (usual - p.seconds.data) + p.seconds.data, 1e-6 * usual);
  EXPECT_EQ(slow.slowest_rank, 5);
  // It computes 2, the others 1: a mean of 9/8; the difference over a step of 2.
  EXPECT_NEAR(slow.slowest_share(), (2 - 9.0 / 8) / 2, 1e-3);
  EXPECT_NEAR(simulate(p, m, {}).slowest_share(), 0, 1e-12);
}

TEST(Simulation, JitterCostsTimeAndIsAFunctionOfTheSeed) {
  MachineDescription m = round_machine(4);
  m.inside = m.between = {1e13, 0};
  const Plan p = plan_of({"--mesh.context", "4", "--mesh.data", "8"}, 32, m);
  const auto run = [&](double jitter, std::uint64_t seed) {
    SimulationOptions options;
    options.jitter = jitter, options.seed = seed, options.steps = 20;
    return simulate(p, m, options);
  };
  const SimulationResult none = run(0, 1), some = run(0.05, 1), more = run(0.2, 1);
  EXPECT_EQ(none.percentile(0.99), none.percentile(0.01));
  EXPECT_GT(some.mean(), 1.01 * none.mean());
  EXPECT_GT(more.mean(), 1.05 * some.mean());
  EXPECT_GT(more.percentile(0.99), more.percentile(0.5));
  EXPECT_EQ(some.step_seconds, run(0.05, 1).step_seconds);
  EXPECT_NE(some.step_seconds, run(0.05, 2).step_seconds);
  // Mean 1, whatever the deviation.
  EXPECT_NEAR(more.mean_compute / none.mean_compute, 1, 0.01);
}

TEST(Simulation, WhatIsPlayedTogetherTakesAsLong) {
  MachineDescription m = round_machine(2);
  for (const double bandwidth : {2e5, 1e7}) {
    m.between.bandwidth = bandwidth;
    const Plan p = plan_of({"--mesh.context", "16", "--attention.scheme", "ring",
                            "--train.global-batch", "8", "--optimizer.shard", "states"},
                           16, m);
    SimulationOptions options;
    const SimulationResult whole = simulate(p, m, options);
    EXPECT_EQ(whole.micro_batches, 8);
    EXPECT_EQ(whole.hops_together, 1);
    options.most_operations = whole.operations / 2;
    const SimulationResult batches = simulate(p, m, options);
    EXPECT_EQ(batches.micro_batches, 3);
    EXPECT_EQ(batches.hops_together, 1);
    EXPECT_NEAR(batches.mean(), whole.mean(), 0.01 * whole.mean());
    EXPECT_NEAR(batches.exposed.context, whole.exposed.context, 0.01 * whole.mean());
    options.most_operations = batches.operations / 3;
    const SimulationResult hops = simulate(p, m, options);
    EXPECT_GT(hops.hops_together, 1);
    EXPECT_NEAR(hops.mean(), whole.mean(), 0.05 * whole.mean());
  }
}

TEST(Simulation, HalfTheNetworkTakesTwiceAsLongWhereItIsAll) {
  MachineDescription m = round_machine(1);
  m.between = {1e4, 0};
  const Plan p = plan_of({"--mesh.context", "4", "--attention.scheme", "ulysses"}, 4, m);
  SimulationOptions half;
  half.network_factor = 0.5;
  const double usual = simulate(p, m, {}).exposed.context;
  EXPECT_NEAR(simulate(p, m, half).exposed.context, 2 * usual, 1e-3 * usual);
}

TEST(Simulation, FourThousandRanksAreQuick) {
  const MachineDescription m = load_machine(LONGSPAN_SOURCE_DIR "/configs/machines/h100-ndr.ini");
  const RunConfig c =
      parse_config(LONGSPAN_SOURCE_DIR "/configs/llama-8b-1m.ini",
                   {"--mesh.context", "64", "--mesh.tensor", "8", "--train.global-batch", "8",
                    "--optimizer.shard", "parameters"});
  const Plan p = plan_run(resolved_for(c, 4096), m, {4096, 8});
  SimulationOptions options;
  options.jitter = 0.05;
  const auto begin = std::chrono::steady_clock::now();
  const SimulationResult s = simulate(p, m, options);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_GT(s.operations, 10'000'000);
  EXPECT_GT(s.mean(), p.step_seconds());
  EXPECT_LT(seconds.count(), 50);  // asked: 5 s on a quiet machine
  std::printf("a step of 4096 ranks: %.2f s, %ld operations\n", seconds.count(),
              static_cast<long>(s.operations));
}

TEST(Simulation, ValuesOutOfRangeAreRefused) {
  const MachineDescription m = round_machine(2);
  const Plan one_node = plan_of({}, 2, m), two = plan_of({}, 4, m);
  const auto says = [&](const Plan& p, auto change, const std::string& what) {
    SimulationOptions options;
    change(options);
    const std::string text = refusal([&] { simulate(p, m, options); });
    EXPECT_NE(text.find(what), std::string::npos) << text;
  };
  says(
      two, [](auto& o) { o.network_factor = 0; }, "--network-factor 0: it must be from 0.001");
  says(
      one_node, [](auto& o) { o.network_factor = 0.5; }, "nothing goes over the network");
  says(
      two, [](auto& o) { o.jitter = NAN; }, "--jitter nan: it must be from 0 to 1");
  says(
      two,
      [](auto& o) {
        o.stragglers = {{4, 2}};
      },
      "there are ranks 0 to 3");
  says(
      two,
      [](auto& o) {
        o.stragglers = {{1, 0}};
      },
      "from 0.1 to 1000 times as slow");
  says(
      two, [](auto& o) { o.steps = 0; }, "--steps 0");
}

TEST(SimulateCommand, JsonHasEveryAnswer) {
  const auto result = longspan({"plan",
                                "--config",
                                LONGSPAN_SOURCE_DIR "/configs/llama-1b-128k.ini",
                                "--machine",
                                "h100-ndr",
                                "--nodes",
                                "4",
                                "--simulate",
                                "--jitter",
                                "0.1",
                                "--steps",
                                "5",
                                "--straggler",
                                "3:1.5,9:1.2",
                                "--network-factor",
                                "0.5",
                                "--mtbf-hours",
                                "1000",
                                "--checkpoint.every",
                                "100",
                                "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["steps"], 5);
  EXPECT_EQ(json["slowest"]["rank"], 3);
  EXPECT_GT(json["step_seconds"]["mean"].get<double>(),
            json["unchanged_network_step_seconds"].get<double>());
  EXPECT_GE(json["step_seconds"]["p99"].get<double>(), json["step_seconds"]["p50"].get<double>());
  EXPECT_GT(json["exposed_seconds"]["context"].get<double>(), 0);
  EXPECT_EQ(json["failures"]["configured"]["every"], 100);
  EXPECT_GE(json["failures"]["best"]["goodput"].get<double>(),
            json["failures"]["configured"]["goodput"].get<double>());
}

TEST(SimulateCommand, WrongValuesAreOneLine) {
  const auto says = [](std::vector<std::string> arguments, const std::string& what) {
    arguments.insert(arguments.begin(), {"plan", "--machine", "h100-ndr", "--model.vocabulary",
                                         "256", "--model.precision", "bf16"});
    const auto result = longspan(arguments);
    EXPECT_EQ(result.status, 2) << what;
    EXPECT_NE(result.err.find(what), std::string::npos) << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  };
  says({"--jitter", "0.1"}, "--jitter is about the simulation: give --simulate");
  says({"--simulate", "--search"}, "--simulate and --search: give one");
  says({"--simulate", "--straggler", "2"}, "--straggler 2: it must be RANK:FACTOR");
  says({"--simulate", "--straggler", "8:2"}, "there are ranks 0 to 7");
  says({"--simulate", "--straggler", "1:2x"}, "it must be RANK:FACTOR");
  says({"--simulate", "--network-factor", "0.5"}, "nothing goes over the network");
  says({"--simulate", "--mtbf-hours", "-1"}, "--mtbf-hours -1: it must be from");
  says({"--simulate", "--restart-seconds", "5"}, "give --mtbf-hours as well");
  says({"--simulate", "--steps", "0"}, "--steps 0: it must be from 1");
}

}  // namespace
}  // namespace longspan::launcher
