#include "launcher/plan.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "launcher/elastic_mesh.hpp"
#include "model/sharding_memory.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

using model::AttentionSchemeKind;
using model::Keep;
using model::OptimizerShard;

constexpr double kUsable = 0.8;  ///< as memory_limit() in memory_plan.cpp

std::int64_t need_of(const RunConfig& config, const Placement& placement, Keep keep,
                     model::Offload offload) {
  RunConfig c = config;
  c.memory.keep = keep, c.memory.offload = offload;
  const MeshShape mesh{c.mesh.data, c.mesh.context, c.mesh.tensor};
  const auto scheme = scheme_of(c, mesh, placement.context_per_node(mesh));
  return model::memory_estimate(c.model, c.memory, rank_share_of(c, mesh, scheme)).total();
}

/// The other settings that would make a run fit, each alone; empty if none does.
std::string settings_that_fit(const RunConfig& config, const Placement& placement,
                              std::int64_t limit) {
  std::string found;
  const auto try_one = [&](const std::string& what, const std::function<void(RunConfig&)>& change) {
    RunConfig c = config;
    change(c);
    const MeshShape mesh{c.mesh.data, c.mesh.context, c.mesh.tensor};
    if (c.train.global_batch % (c.train.micro_batch * mesh.data) != 0 ||
        !tensor_problems(c.model, mesh.tensor).empty() || mesh.context > c.data.sequence_length)
      return;
    const std::int64_t need = need_of(c, placement, c.memory.keep, c.memory.offload);
    if (need <= limit)
      found += fmt::format("{}{} needs {:.1f} MiB", found.empty() ? "" : ", ", what,
                           static_cast<double>(need) / 1048576);
  };
  if (config.optimizer.shard != OptimizerShard::kParameters)
    try_one("optimizer.shard=parameters with memory.keep=block", [](RunConfig& c) {
      c.optimizer.shard = OptimizerShard::kParameters, c.memory.keep = Keep::kBlock;
    });
  if (config.memory.offload == model::Offload::kNone)
    try_one("memory.offload=file with memory.keep=block", [](RunConfig& c) {
      c.memory.offload = model::Offload::kFile, c.memory.keep = Keep::kBlock;
    });
  if (config.train.micro_batch > 1)
    try_one("train.micro-batch=1 with memory.keep=block",
            [](RunConfig& c) { c.train.micro_batch = 1, c.memory.keep = Keep::kBlock; });
  for (int more = 2; more <= config.mesh.data; more *= 2)
    if (config.mesh.data % more == 0 && found.empty())
      try_one(fmt::format("mesh.context={} mesh.data={} with memory.keep=block",
                          config.mesh.context * more, config.mesh.data / more),
              [more](RunConfig& c) {
                c.mesh.context *= more, c.mesh.data /= more, c.memory.keep = Keep::kBlock;
              });
  return found;
}

void fill_costs(Plan& plan, const MachineDescription& m) {
  const RunConfig& c = plan.config;
  const double step = plan.step_seconds(), ranks = plan.placement.ranks;
  const double tokens = static_cast<double>(c.train.global_batch * c.data.sequence_length);
  plan.tokens_per_second = tokens / step;
  plan.mfu = model::model_flops(c.model, c.attention, c.train.global_batch, c.data.sequence_length)
                 .total() /
             step /
             (m.for_rank(plan.placement.ranks_on_node(), c.run.threads)
                  .rates(c.model.precision)
                  .peak_flops *
              ranks);
  plan.run_seconds = step * static_cast<double>(c.train.steps);
  if (m.watts_per_rank > 0 || m.watts_per_node > 0)
    plan.watts = m.pue * (m.watts_per_rank * ranks + m.watts_per_node * plan.placement.nodes());
  const double hours = plan.run_seconds / 3600;
  plan.cost = m.price_per_rank_hour * ranks * hours;
  plan.kilograms_co2 = plan.watts / 1000 * hours * m.grams_co2_per_kwh / 1000;
}

Plan planned(const RunConfig& config, const MachineDescription& machine, const Placement& placement,
             bool must_fit) {
  if (!machine.rates(config.model.precision).given())
    fail_usage("machine {} ({}) has no rates of model.precision={}: set model.precision={}",
               machine.name, machine.path,
               config.model.precision == model::Precision::kBf16 ? "bf16" : "fp32",
               config.model.precision == model::Precision::kBf16 ? "fp32" : "bf16");
  Plan plan;
  plan.config = config;
  plan.placement = placement;
  const MeshShape mesh{config.mesh.data, config.mesh.context, config.mesh.tensor};
  plan.scheme = scheme_of(config, mesh, placement.context_per_node(mesh));
  plan.share = rank_share_of(config, mesh, plan.scheme);
  plan.limit = planned_limit(config, machine, placement);
  const bool fixed = config.memory.keep != Keep::kAuto;
  if (fixed && (config.memory.budget == 0 || !must_fit)) {
    plan.keep = model::uniform_plan(config.memory.keep, config.model.layers);
  } else {
    try {
      MemoryPlan chosen = plan_memory(config, plan.share, plan.limit);
      plan.keep = std::move(chosen.plan);
      plan.keep_reason = std::move(chosen.reason);
    } catch (const Error& e) {
      const std::string fitting = settings_that_fit(config, placement, plan.limit.bytes);
      throw Error(
          fmt::format("{}{}", e.what(), fitting.empty() ? "" : "; of other settings " + fitting),
          e.status());
    }
  }
  const auto estimate = model::memory_estimate(config.model, config.memory, plan.share, plan.keep);
  plan.memory = split_memory(config, plan.share, estimate);
  plan.memory.program = static_cast<std::int64_t>(machine.program_bytes);
  const auto room =
      static_cast<std::int64_t>(machine.for_rank(placement.ranks_on_node(), 0).memory_bytes);
  if (must_fit && plan.memory.total() > room) {
    // As plan_memory() says it when a budget is set.
    const std::int64_t arrays =
        std::max<std::int64_t>(1, room - static_cast<std::int64_t>(machine.program_bytes));
    RunConfig bounded = config;
    bounded.memory.budget = arrays;
    std::string why;
    try {
      plan_memory(bounded, plan.share, {arrays, "memory of the machine"});
    } catch (const Error& e) {
      why = e.what();
      why = why.substr(why.find(": ") + 2);
    }
    const std::string fitting = settings_that_fit(config, placement, arrays);
    fail_usage("machine {} gives a rank {:.1f} MiB, of which {:.1f} MiB are left for arrays: {}{}",
               machine.name, static_cast<double>(room) / 1048576,
               static_cast<double>(arrays) / 1048576, why,
               fitting.empty() ? "" : "; of other settings " + fitting);
  }
  const ContextTraffic traffic =
      context_traffic(config, mesh, plan.scheme.scheme, plan.scheme.inner);
  const StepEstimate step =
      estimate_step(config, machine.for_rank(placement.ranks_on_node(), config.run.threads),
                    placement, mesh, plan.share, count_keeps(plan.keep.keep_L), traffic);
  plan.seconds = step.seconds;
  plan.bytes = step.bytes;
  fill_costs(plan, machine);
  return plan;
}

}  // namespace

MemoryLimit planned_limit(const RunConfig& config, const MachineDescription& machine,
                          const Placement& placement) {
  if (config.memory.budget > 0) return {config.memory.budget, "memory.budget"};
  const double bytes = machine.for_rank(placement.ranks_on_node(), 0).memory_bytes;
  return {static_cast<std::int64_t>(kUsable * bytes),
          fmt::format("80 % of what {} gives a rank", machine.name)};
}

RunConfig resolved_for(RunConfig config, int ranks) {
  resolve(config, config.model.vocabulary);
  const MeshShape mesh = choose_mesh(config, ranks).shape;
  config.mesh.data = mesh.data, config.mesh.context = mesh.context,
  config.mesh.tensor = mesh.tensor;
  if (config.train.global_batch == 0)
    config.train.global_batch = config.train.micro_batch * mesh.data;
  accumulation_of(config, mesh);
  std::vector<std::string> problems = tensor_problems(config.model, mesh.tensor);
  if (mesh.context > config.data.sequence_length)
    problems.push_back(fmt::format(
        "mesh.context={} ranks cannot share data.sequence-length={} tokens: every rank needs one",
        mesh.context, config.data.sequence_length));
  if (!problems.empty())
    throw Error(fmt::format("{}", fmt::join(problems, "\n")), ExitStatus::kUsage);
  return config;
}

PlannedMemory split_memory(const RunConfig& c, const model::RankShare& share,
                           const model::MemoryEstimate& estimate) {
  const std::int64_t count = model::parameter_count(c.model, share.tensor);
  const std::int64_t elements =
      model::sharding_memory(c.model, share.shard, share.owners, share.tensor).states;
  PlannedMemory memory;
  // sharding_memory.cpp: what is shared is the same part of each kind.
  const auto kinds = [&](std::int64_t weights, std::int64_t gradients) {
    memory.weights = 4 * weights, memory.gradients = 4 * gradients;
    memory.moments = 4 * (elements - weights - gradients);
  };
  if (share.owners == 1 || share.shard <= OptimizerShard::kStates)
    kinds(count, count);
  else if (share.shard == OptimizerShard::kGradients)
    kinds(count, (elements - count) / 3);
  else
    kinds(elements / 4, elements / 4);
  memory.rounded = estimate.states - 4 * elements;
  memory.activations = estimate.activations;
  memory.transient = estimate.transient;
  memory.staging = estimate.staging;
  return memory;
}

Plan plan_run(const RunConfig& config, const MachineDescription& machine,
              const Placement& placement) {
  return planned(config, machine, placement, true);
}

Plan plan_anyway(const RunConfig& config, const MachineDescription& machine,
                 const Placement& placement) {
  return planned(config, machine, placement, false);
}

std::vector<std::pair<std::string, double>> parts_of(const StepSeconds& s) {
  return {{"linear", s.linear},
          {"attention", s.attention},
          {"pointwise", s.pointwise},
          {"recompute", s.recompute},
          {"loss", s.loss},
          {"context_exposed", s.context_exposed},
          {"tensor_exposed", s.tensor_exposed},
          {"gradient_exposed", s.gradient_exposed},
          {"optimizer", s.optimizer},
          {"data", s.data},
          {"checkpoint", s.checkpoint},
          {"coordination", s.coordination}};
}

std::vector<std::pair<std::string, std::int64_t>> kinds_of(const PlannedMemory& m) {
  return {{"weights", m.weights},
          {"gradients", m.gradients},
          {"moments", m.moments},
          {"rounded_weights", m.rounded},
          {"kept_activations", m.activations},
          {"transient", m.transient},
          {"checkpoint_staging", m.staging},
          {"program", m.program}};
}

std::string limiting_part(const StepSeconds& seconds) {
  const auto parts = parts_of(seconds);
  return std::max_element(parts.begin(), parts.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

std::vector<Advice> advise(const Plan& plan, const MachineDescription& machine) {
  const RunConfig& c = plan.config;
  const double now = plan.step_seconds();
  std::vector<Advice> all;
  const MeshShape mesh{c.mesh.data, c.mesh.context, c.mesh.tensor};
  const KeepCounts keeps = count_keeps(plan.keep.keep_L);
  const ContextTraffic traffic = context_traffic(c, mesh, plan.scheme.scheme, plan.scheme.inner);
  const auto faster = [&](const std::string& what,
                          const std::function<void(MachineDescription&)>& change) {
    MachineDescription better = machine;
    change(better);
    const double then =
        estimate_step(c, better.for_rank(plan.placement.ranks_on_node(), c.run.threads),
                      plan.placement, mesh, plan.share, keeps, traffic)
            .seconds.total();
    all.push_back({what, 1 - then / now, false});
  };
  const bool bf16 = c.model.precision == model::Precision::kBf16;
  const auto rates = [bf16](MachineDescription& m) -> MachineRates& {
    return bf16 ? m.bf16 : m.fp32;
  };
  faster("matrix products twice as fast",
         [&](MachineDescription& m) { rates(m).linear_flops *= 2; });
  faster("attention twice as fast", [&](MachineDescription& m) {
    rates(m).attention_forward_flops *= 2, rates(m).attention_backward_flops *= 2;
  });
  faster("memory twice as fast", [](MachineDescription& m) { m.pointwise_bandwidth *= 2; });
  faster("links inside a node with twice the bandwidth",
         [](MachineDescription& m) { m.inside.bandwidth *= 2; });
  faster("links between nodes with twice the bandwidth",
         [](MachineDescription& m) { m.between.bandwidth *= 2; });
  faster("links with half the latency",
         [](MachineDescription& m) { m.inside.latency /= 2, m.between.latency /= 2; });
  faster("storage twice as fast",
         [](MachineDescription& m) { m.write_bandwidth *= 2, m.read_bandwidth *= 2; });

  const auto setting = [&](const std::string& what, const std::function<void(RunConfig&)>& change) {
    RunConfig other = c;
    change(other);
    try {
      all.push_back(
          {what, 1 - plan_run(other, machine, plan.placement).step_seconds() / now, true});
    } catch (const Error&) {
      // It does not fit: no advice.
    }
  };
  for (const Keep keep : {Keep::kAll, Keep::kAttention})
    if (c.memory.keep != keep)
      setting(fmt::format("memory.keep={}", name_of(keep)),
              [keep](RunConfig& o) { o.memory.keep = keep; });
  if (mesh.context > 1)
    for (const auto scheme : {AttentionSchemeKind::kRing, AttentionSchemeKind::kAllgather,
                              AttentionSchemeKind::kUlysses, AttentionSchemeKind::kHybrid})
      if (plan.scheme.scheme != scheme)
        setting(fmt::format("attention.scheme={}", name_of(scheme)),
                [scheme](RunConfig& o) { o.attention.scheme = scheme; });
  if (c.train.global_batch % (2 * c.train.micro_batch * mesh.data) == 0)
    setting(fmt::format("train.micro-batch={}", 2 * c.train.micro_batch),
            [](RunConfig& o) { o.train.micro_batch *= 2; });
  if (mesh.data * mesh.context > 1)
    for (const auto& [name, shard] :
         {std::pair{"none", OptimizerShard::kNone}, std::pair{"states", OptimizerShard::kStates},
          std::pair{"gradients", OptimizerShard::kGradients}})
      if (c.optimizer.shard != shard)
        setting(fmt::format("optimizer.shard={}", name),
                [s = shard](RunConfig& o) { o.optimizer.shard = s; });
  std::erase_if(all, [](const Advice& a) { return a.saved < 0.005; });
  std::stable_sort(all.begin(), all.end(),
                   [](const Advice& a, const Advice& b) { return a.saved > b.saved; });
  return all;
}

}  // namespace longspan::launcher
