/// `longspan plan`: what a configuration needs and takes on a machine, or the best way to run it.
#include <fmt/format.h>

#include <filesystem>

#include "io/token_dataset.hpp"
#include "launcher/arguments.hpp"
#include "launcher/command.hpp"
#include "launcher/options.hpp"
#include "launcher/plan_search.hpp"
#include "launcher/plan_simulate.hpp"
#include "parallel/log.hpp"

namespace longspan::launcher {
namespace {

/// model.vocabulary, from the dataset if the configuration has none.
void find_vocabulary(RunConfig& config) {
  if (config.model.vocabulary > 0) return;
  if (config.data.path.empty() || !std::filesystem::exists(config.data.path))
    fail_usage(
        "the vocabulary is not known: model.vocabulary is 0 (the dataset's) and {}: set "
        "model.vocabulary, or data.path to a dataset",
        config.data.path.empty() ? "data.path is not set"
                                 : "data.path=" + config.data.path + " does not exist");
  resolve(config, io::TokenDataset::open(config.data.path).facts().vocabulary);
}

Placement placement_of(const Arguments& args, const MachineDescription& machine) {
  Placement placement;
  placement.ranks_per_node = args.has("ranks-per-node")
                                 ? static_cast<int>(args.integer("ranks-per-node"))
                                 : machine.ranks_per_node;
  const std::int64_t nodes = args.integer("nodes");
  constexpr std::int64_t kMostRanks = 1 << 20;
  if (placement.ranks_per_node < 1 || nodes < 1 || nodes * placement.ranks_per_node > kMostRanks)
    fail_usage(
        "plan: --nodes {} with {} ranks a node: both must be at least 1, and together at "
        "most {} ranks",
        nodes, placement.ranks_per_node, kMostRanks);
  placement.ranks = static_cast<int>(nodes) * placement.ranks_per_node;
  return placement;
}

/// Prices on the command line are over those of the machine file.
void take_prices(const Arguments& args, MachineDescription& machine) {
  const auto take = [&](const char* flag, double& value, double least) {
    if (!args.has(flag)) return;
    value = args.number(flag);
    if (value < least) fail_usage("plan: --{} {}: it must be at least {}", flag, value, least);
  };
  take("price", machine.price_per_rank_hour, 0);
  take("pue", machine.pue, 1);
  take("co2", machine.grams_co2_per_kwh, 0);
}

}  // namespace

ExitStatus plan_command(const std::vector<std::string>& arguments) {
  const Arguments args(
      arguments, "plan",
      "says what a configuration needs and takes on a machine before it runs: memory of a rank, "
      "bytes on links, seconds of a step by part, energy and cost, what limits it and what would "
      "help most. With --search every mesh, scheme, micro-batch, optimizer.shard and keep mode is "
      "tried and the best are shown. With --simulate a step is played event by event on all ranks: "
      "jitter, slow ranks, shared network adapters, another network; and failures against "
      "checkpoints",
      {{"config", "FILE", "settings, an INI file; --section.key VALUE overrides it"},
       {"machine", "NAME", "a description from configs/machines, local, or a file"},
       {"nodes", "N", "nodes of the machine", "1"},
       {"ranks-per-node", "R", "ranks on each; without it the machine's"},
       {"search", "", "all ways to run it, the best first"},
       {"rows", "N", "of the table of --search", "10"},
       {"simulate", "", "a step on all ranks, event by event"},
       {"network-factor", "F", "with --simulate: bandwidth between nodes times F", "1"},
       {"jitter", "J", "with --simulate: relative deviation of each rank's compute", "0"},
       {"straggler", "R:K", "with --simulate: rank R is K times slower; several with commas"},
       {"steps", "N", "with --simulate: steps to play; default 10 with jitter, else 1"},
       {"seed", "N", "with --simulate: of jitter and failures", "1"},
       {"mtbf-hours", "H", "with --simulate: mean time between failures of a node"},
       {"restart-seconds", "S", "with --mtbf-hours: from a failure to the next step, reading apart",
        "60"},
       {"price", "MONEY", "of a rank for an hour; over the machine's"},
       {"pue", "NUMBER", "power of the whole site / of its computers; over the machine's"},
       {"co2", "GRAMS", "per kWh; over the machine's"},
       {"json", "", "one JSON object instead of text"}},
      "longspan plan --config configs/llama-1b-128k.ini --machine h100-ndr --nodes 4 --search",
      true);
  if (args.help_wanted()) {
    log::line(args.help());
    return ExitStatus::kDone;
  }
  if (!args.positional().empty())
    fail_usage("plan: '{}' is not expected: the configuration is given as --config FILE",
               args.positional()[0]);
  if (!args.has("machine"))
    fail_usage("plan: --machine is missing: name a description of configs/machines, or local");
  RunConfig config = parse_config(args.text("config"), args.settings());
  MachineDescription machine = load_machine(args.text("machine"));
  take_prices(args, machine);
  const Placement placement = placement_of(args, machine);
  find_vocabulary(config);
  refuse_without_simulate(args);
  if (args.has("search")) {
    const std::int64_t rows = args.integer("rows");
    if (rows < 1) fail_usage("plan: --rows {}: it must be at least 1", rows);
    const SearchResult result = search_plans(config, machine, placement);
    const auto report = args.has("json") ? search_json : search_text;
    log::line(report(result, config, machine, placement, static_cast<std::size_t>(rows)));
    return ExitStatus::kDone;
  }
  const Plan plan = plan_run(resolved_for(std::move(config), placement.ranks), machine, placement);
  if (args.has("simulate")) {
    log::line(simulate_plan(args, plan, machine));
    return ExitStatus::kDone;
  }
  const std::vector<Advice> advice = advise(plan, machine);
  log::line(args.has("json") ? plan_json(plan, machine, advice) : plan_text(plan, machine, advice));
  return ExitStatus::kDone;
}

}  // namespace longspan::launcher
