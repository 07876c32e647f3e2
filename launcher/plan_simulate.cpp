#include "launcher/plan_simulate.hpp"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "launcher/goodput.hpp"
#include "launcher/progress.hpp"
#include "launcher/simulation.hpp"
#include "launcher/table.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::ordered_json;
using Align = Table::Align;

std::vector<std::pair<int, double>> parse_stragglers(const std::string& text) {
  std::vector<std::pair<int, double>> all;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    int rank = 0, used = 0;
    double factor = 0;
    if (std::sscanf(part.c_str(), "%d:%lf%n", &rank, &factor, &used) != 2 ||
        static_cast<std::size_t>(used) != part.size() || !std::isfinite(factor))
      fail_usage(
          "plan: --straggler {}: it must be RANK:FACTOR, such as 17:2.0, several with commas",
          text);
    all.emplace_back(rank, factor);
  }
  if (all.empty()) fail_usage("plan: --straggler is empty: it must be RANK:FACTOR, such as 17:2.0");
  return all;
}

int parse_steps(const Arguments& args, double jitter) {
  if (!args.has("steps")) return jitter > 0 ? 10 : 1;
  const std::int64_t steps = args.integer("steps");
  if (steps < 1 || steps > 100000)
    fail_usage("plan: --steps {}: it must be from 1 to 100000", steps);
  return static_cast<int>(steps);
}

/// Failures, when --mtbf-hours is given.
struct FailureReport {
  FailureModel model;
  double node_hours = 0;
  std::int64_t every = 0;  ///< checkpoint.every, or all steps
  std::int64_t best = 0;
  double goodput = 0, best_goodput = 0;
  SimulatedRun run, best_run;
};

FailureReport failures_of(const Arguments& args, const Plan& plan,
                          const MachineDescription& machine, double step_seconds,
                          std::uint64_t seed) {
  FailureReport report;
  report.node_hours = args.number("mtbf-hours");
  if (!(report.node_hours >= 1e-3 && report.node_hours <= 1e9))
    fail_usage("plan: --mtbf-hours {}: it must be from 0.001 to 1e9 hours", report.node_hours);
  const double restart = args.number("restart-seconds");
  if (!(restart >= 0 && restart <= 1e6))
    fail_usage("plan: --restart-seconds {}: it must be from 0 to 1e6", restart);
  const RunConfig& c = plan.config;
  const MachineDescription rank =
      machine.for_rank(plan.placement.ranks_on_node(), plan.config.run.threads);
  RunConfig saving = c;
  if (saving.checkpoint.every == 0) saving.checkpoint.every = 1;  // what a save in between takes
  const SaveSeconds save = save_seconds(saving, rank, plan.placement);
  const double read = 12 * static_cast<double>(model::parameter_count(c.model)) /
                      plan.placement.ranks / rank.read_bandwidth;
  report.model = {report.node_hours * 3600 / plan.placement.nodes(), step_seconds, save.blocked,
                  save.behind, restart + read};
  const std::int64_t total = std::max<std::int64_t>(1, c.train.steps);
  report.every = c.checkpoint.every > 0 ? std::min(c.checkpoint.every, total) : total;
  report.best = std::min(best_interval(report.model), total);
  report.goodput = expected_goodput(report.model, report.every);
  report.best_goodput = expected_goodput(report.model, report.best);
  constexpr std::int64_t kMostFailures = 100000;
  report.run = simulate_run(report.model, report.every, total, seed, kMostFailures);
  report.best_run = simulate_run(report.model, report.best, total, seed, kMostFailures);
  return report;
}

std::string run_words(const SimulatedRun& run) {
  if (run.goodput == 0) return "never ends";
  return fmt::format("{} with {} failures, {} steps lost", duration_text(run.seconds), run.failures,
                     run.steps_lost);
}

std::string failures_text(const FailureReport& f, const Plan& plan) {
  const double step = f.model.step_seconds;
  const auto steps_of = [&](double seconds) {
    return fmt::format("{:.0f} steps, {}", std::max(1.0, seconds / step),
                       duration_text(std::max(step, seconds)));
  };
  std::string text = fmt::format(
      "\nfailures: a node every {:g} h, {} nodes: one every {}; a save keeps steps waiting {:.3g} "
      "s "
      "and is safe {:.3g} s later; a restart takes {:.3g} s\n",
      f.node_hours, plan.placement.nodes(), duration_text(f.model.mtbf_seconds),
      f.model.blocked_seconds, f.model.behind_seconds, f.model.restart_seconds);
  Table table({{"checkpoint.every", Align::kLeft},
               {"steps"},
               {"interval"},
               {"goodput"},
               {"a run of train.steps", Align::kLeft}});
  const auto add = [&](const char* name, std::int64_t steps, double goodput,
                       const SimulatedRun& run) {
    table.add({name, std::to_string(steps), duration_text(static_cast<double>(steps) * step),
               fmt::format("{:.2f} %", 100 * goodput), run_words(run)});
  };
  add("as configured", f.every, f.goodput, f.run);
  add("best", f.best, f.best_goodput, f.best_run);
  return text + table.text() +
         fmt::format("closed forms: Young {}; Daly {}\n", steps_of(young_interval(f.model)),
                     steps_of(daly_interval(f.model)));
}

Json failures_json(const FailureReport& f) {
  const auto run = [](const SimulatedRun& r) {
    return Json{{"seconds", r.goodput > 0 ? Json(r.seconds) : Json(nullptr)},
                {"failures", r.failures},
                {"steps_lost", r.steps_lost},
                {"goodput", r.goodput}};
  };
  return {{"mtbf_seconds", f.model.mtbf_seconds},
          {"save_blocked_seconds", f.model.blocked_seconds},
          {"save_behind_seconds", f.model.behind_seconds},
          {"restart_seconds", f.model.restart_seconds},
          {"configured", {{"every", f.every}, {"goodput", f.goodput}, {"run", run(f.run)}}},
          {"best", {{"every", f.best}, {"goodput", f.best_goodput}, {"run", run(f.best_run)}}},
          {"young_seconds", young_interval(f.model)},
          {"daly_seconds", daly_interval(f.model)}};
}

}  // namespace

void refuse_without_simulate(const Arguments& args) {
  if (args.has("simulate")) {
    if (args.has("search"))
      fail_usage("plan: --simulate and --search: give one; simulate what the search has found");
    if (args.has("restart-seconds") && !args.has("mtbf-hours"))
      fail_usage("plan: --restart-seconds is about failures: give --mtbf-hours as well");
    return;
  }
  for (const char* flag :
       {"network-factor", "jitter", "straggler", "steps", "seed", "mtbf-hours", "restart-seconds"})
    if (args.has(flag)) fail_usage("plan: --{} is about the simulation: give --simulate", flag);
}

std::string simulate_plan(const Arguments& args, const Plan& plan,
                          const MachineDescription& machine) {
  SimulationOptions options;
  options.network_factor = args.number("network-factor");
  options.jitter = args.number("jitter");
  if (args.has("straggler")) options.stragglers = parse_stragglers(args.text("straggler"));
  options.steps = parse_steps(args, options.jitter);
  options.seed = static_cast<std::uint64_t>(args.integer("seed"));
  const SimulationResult result = simulate(plan, machine, options);
  const double step = result.mean();
  std::optional<double> unchanged;
  if (options.network_factor != 1) {
    SimulationOptions same = options;
    same.network_factor = 1;
    unchanged = simulate(plan, machine, same).mean();
  }
  std::optional<FailureReport> failures;
  if (args.has("mtbf-hours")) failures = failures_of(args, plan, machine, step, options.seed);
  const StepSeconds& formula = plan.seconds;
  const double by_formula = formula.total() - formula.checkpoint;

  const RunConfig& c = plan.config;
  if (args.has("json")) {
    Json report = {
        {"ranks", plan.placement.ranks},
        {"nodes", plan.placement.nodes()},
        {"mesh", {{"data", c.mesh.data}, {"context", c.mesh.context}, {"tensor", c.mesh.tensor}}},
        {"network_factor", options.network_factor},
        {"jitter", options.jitter},
        {"seed", options.seed},
        {"steps", options.steps},
        {"step_seconds",
         {{"mean", step}, {"p50", result.percentile(0.5)}, {"p99", result.percentile(0.99)}}},
        {"formula_step_seconds", by_formula},
        {"unchanged_network_step_seconds", unchanged ? Json(*unchanged) : Json(nullptr)},
        {"exposed_seconds",
         {{"context", result.exposed.context},
          {"tensor", result.exposed.tensor},
          {"gradients", result.exposed.gradients},
          {"coordination", result.exposed.coordination}}},
        {"slowest",
         {{"rank", result.slowest_rank},
          {"compute_seconds", result.slowest_compute},
          {"mean_compute_seconds", result.mean_compute},
          {"share_of_step", result.slowest_share()}}},
        {"operations", result.operations},
        {"micro_batches_played", result.micro_batches},
        {"hops_together", result.hops_together},
        {"failures", failures ? failures_json(*failures) : Json(nullptr)}};
    return report.dump(2);
  }

  std::string text = fmt::format(
      "{} ranks on {} nodes of {}, mesh {} x {} x {} (data x context x tensor), {} step{} played\n",
      plan.placement.ranks, plan.placement.nodes(), machine.name, c.mesh.data, c.mesh.context,
      c.mesh.tensor, options.steps, options.steps == 1 ? "" : "s");
  if (result.hops_together > 1)
    text += fmt::format("(hops of a ring are played {} at a time)\n", result.hops_together);
  const int accumulation =
      static_cast<int>(c.train.global_batch / (c.train.micro_batch * c.mesh.data));
  if (result.micro_batches < accumulation)
    text += fmt::format(
        "(of {} micro-batches {} are played, those left out take what the second does)\n",
        accumulation, result.micro_batches);
  Table seconds({{"a step without saves", Align::kLeft}, {"seconds"}});
  const auto add = [&](const std::string& name, double value) {
    seconds.add({name, fmt::format("{:.4g}", value)});
  };
  add("mean", step);
  add("p50", result.percentile(0.5));
  add("p99", result.percentile(0.99));
  add("by the closed formulas", by_formula);
  if (unchanged) add("network as it is", *unchanged);
  text += fmt::format("\n{}", seconds.text());
  if (unchanged)
    text += fmt::format("network times {:g}: a step takes {:+.1f} %\n", options.network_factor,
                        100 * (step / *unchanged - 1));

  Table waits({{"a rank waits, mean", Align::kLeft}, {"seconds"}, {"share"}, {"by formula"}});
  const auto wait = [&](const char* name, double value, double closed) {
    if (value > 0 || closed > 0)
      waits.add({name, fmt::format("{:.4g}", value), fmt::format("{:.1f} %", 100 * value / step),
                 fmt::format("{:.4g}", closed)});
  };
  wait("context", result.exposed.context, formula.context_exposed);
  wait("tensor", result.exposed.tensor, formula.tensor_exposed);
  wait("gradients", result.exposed.gradients, formula.gradient_exposed);
  wait("coordination", result.exposed.coordination, formula.coordination);
  if (!waits.empty()) text += fmt::format("\n{}", waits.text());
  text += fmt::format(
      "slowest rank {}: computes {:.4g} s where the mean is {:.4g}, {:.1f} % of the step\n",
      result.slowest_rank, result.slowest_compute, result.mean_compute,
      100 * result.slowest_share());
  if (failures) text += failures_text(*failures, plan);
  return text;
}

}  // namespace longspan::launcher
