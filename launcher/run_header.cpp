#include "launcher/run_header.hpp"

#include <fmt/format.h>

#include "launcher/machine.hpp"
#include "model/flops.hpp"
#include "parallel/log.hpp"
#include "slurm/environment.hpp"

namespace longspan::launcher {
namespace {

void print_sharing(model::OptimizerShard shard, int owners) {
  using model::OptimizerShard;
  if (shard == OptimizerShard::kNone) return;
  if (owners == 1) return log::info("optimizer.shard: one rank has nothing to share");
  log::info("optimizer.shard: {} ranks share the {}", owners,
            shard == OptimizerShard::kStates      ? "optimizer states"
            : shard == OptimizerShard::kGradients ? "optimizer states and gradients"
                                                  : "optimizer states, gradients and weights");
}

}  // namespace

void print_header(const TrainingRun& run, double peak_flops, const std::string& device) {
  const RunConfig& c = run.config();
  const auto memory = run.memory_estimate();
  log::info("{}", version_line());
  log::info("{} rank{} ({}), {} thread{} each; {} parameters; {}", run.mesh().world().size(),
            run.mesh().world().size() == 1 ? "" : "s", to_string(run.mesh().shape()), run.threads(),
            run.threads() == 1 ? "" : "s", model::parameter_count(c.model), c.data.path);
  if (!run.mesh_reason().empty()) log::info("{}", run.mesh_reason());
  log::info("{}", device);
  log::info(
      "a step: {} sequence{} of {} tokens, {:.4g} GFLOP (model FLOPs: 6 per weight and token, 12 "
      "per visible query-key pair "
      "and channel, no recomputation)",
      c.train.global_batch, c.train.global_batch == 1 ? "" : "s", c.data.sequence_length,
      run.step_flops() * 1e-9);
  log::info("peak: {:.1f} GFLOP/s ({} matrix product of 1024^3, all ranks at once): 100 % of mfu",
            peak_flops * 1e-9, c.model.precision == model::Precision::kBf16 ? "bf16" : "fp32");
  log::info(
      "memory predicted per rank: {:.1f} MiB weights, gradients and optimizer + {:.1f} MiB kept "
      "activations + {:.1f} MiB at work{}",
      static_cast<double>(memory.states) / 1048576,
      static_cast<double>(memory.activations) / 1048576,
      static_cast<double>(memory.transient) / 1048576,
      memory.staging == 0 ? ""
                          : fmt::format(" + {:.1f} MiB copied for checkpoints",
                                        static_cast<double>(memory.staging) / 1048576));
  print_sharing(c.optimizer.shard, run.mesh().replicas().size());
  if (!run.scheme().why.empty())
    log::info("attention over {} ranks: {}", c.mesh.context, run.scheme().why);
  if (!run.memory_reason().empty()) log::info("{}", run.memory_reason());
  if (const auto job = slurm::current_job())
    log::info("Slurm job {} on {}, restart {}", job->id, job->node_list, job->restart_count);
  if (c.attention.mask == model::MaskKind::kFull)
    log::warn(
        "attention.mask=full lets every token see the one it is to predict: the loss says nothing "
        "about the data");
  const std::int64_t heads = c.model.heads / c.mesh.tensor;
  if (run.scheme().scheme == model::AttentionSchemeKind::kUlysses && c.mesh.context > heads)
    log::warn(
        "attention.scheme=ulysses shares model.heads={}{} among mesh.context={} ranks: {} of them "
        "idle in attention; "
        "attention.scheme=ring keeps all busy",
        c.model.heads, c.mesh.tensor == 1 ? "" : fmt::format(" / mesh.tensor={}", c.mesh.tensor),
        c.mesh.context, c.mesh.context - heads);
}

}  // namespace longspan::launcher
