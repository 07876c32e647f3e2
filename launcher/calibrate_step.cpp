#include "launcher/calibrate_step.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "launcher/compute.hpp"
#include "launcher/duration.hpp"
#include "launcher/options.hpp"
#include "launcher/plan.hpp"
#include "model/adamw.hpp"
#include "model/kernels/profiled.hpp"
#include "model/transformer.hpp"

namespace longspan::launcher {
namespace {

using Clock = std::chrono::steady_clock;

/// Of a step, by kind.
struct Kinds {
  double products = 0, attention = 0, pointwise = 0;
};

/// On `mesh`. Tensor ranks share heads: then there are more of them, and attention is not
/// comparable.
RunConfig small_model(model::Precision precision, const MeshShape& mesh) {
  return resolved_for(parse_config("", {"--model.layers",         "2",
                                        "--model.width",          "384",
                                        "--model.heads",          mesh.tensor > 1 ? "12" : "6",
                                        "--model.vocabulary",     "264",
                                        "--model.precision",      name_of(precision),
                                        "--data.sequence-length", "1536",
                                        "--train.global-batch",   "2",
                                        "--train.micro-batch",    "1",
                                        "--memory.keep",          "all",
                                        "--attention.scheme",     "ring",
                                        "--mesh.context",         std::to_string(mesh.context),
                                        "--mesh.tensor",          std::to_string(mesh.tensor)}),
                      mesh.context * mesh.tensor);
}

/// Its steps on one mesh: all of `ranks`.
class SmallRun {
 public:
  SmallRun(const RunConfig& config, const Communicator& ranks, const MeshShape& shape)
      : config_(config),
        kernels_(cpu_compute().backend),
        backend_(cpu_compute().with(kernels_).backend),
        mesh_(ranks, shape),
        context_(shape.context > 1 ? make_mpi_group(mesh_.context()) : nullptr),
        tensor_(shape.tensor > 1 ? make_mpi_group(mesh_.tensor()) : nullptr),
        group_(make_mpi_group(mesh_.replicas())),
        model_(config.model, config.attention, config.memory,
               shard_sequence(config.data.sequence_length, SequenceLayout::kZigzag, context_.get(),
                              shape.tensor),
               backend_, {}, model::OptimizerShard::kNone, shard_weights(tensor_.get())),
        sharding_(model::OptimizerShard::kNone, model_.parameters(), *group_, mesh_.replicas(),
                  backend_),
        optimizer_(model_.parameters(), sharding_, config.optimizer, backend_),
        ids_(model_.shards().mine().size()) {
    sharding_.initialize(1);
    for (std::size_t i = 0; i < ids_.size(); ++i)
      ids_[i] = static_cast<std::int32_t>(i * 7919 % 251);
  }

  /// Seconds of each kind; what is in no operation counts as pointwise.
  Kinds step() {
    kernels_.clear();
    const auto begin = Clock::now();
    const View<const std::int32_t> ids(ids_.data(), static_cast<std::int64_t>(ids_.size()));
    const std::int64_t number = 0;
    for (std::int64_t i = 0; i < config_.train.global_batch; ++i) {
      MicroBatch batch;
      batch.sequences = 1;
      batch.inputs_BT = batch.targets_BT = ids;
      batch.sequence_numbers_B = {&number, 1};
      sharding_.begin_micro_batch(i + 1 == config_.train.global_batch);
      model_.train(batch, 1.0f / static_cast<float>(ids_.size()));
    }
    sharding_.finish_gradients();
    optimizer_.update(1e-4, optimizer_.gradient_norm(), ++step_);
    Kinds kinds;
    for (const model::OperationTotals& one : kernels_.totals())
      if (one.name.starts_with("matrix product"))
        kinds.products += one.seconds;
      else if (one.name == "attention forward" || one.name == "attention backward")
        kinds.attention += one.seconds;
    kinds.pointwise = seconds_since(begin) - kinds.products - kinds.attention;
    return kinds;
  }

 private:
  using MicroBatch = model::MicroBatch;
  const RunConfig& config_;
  model::ProfiledKernels kernels_;
  model::Backend backend_;
  Mesh mesh_;
  std::unique_ptr<ProcessGroup> context_, tensor_, group_;
  model::Transformer model_;
  model::ParameterSharding sharding_;
  model::AdamW optimizer_;
  std::vector<std::int32_t> ids_;
  std::int64_t step_ = 0;
};

Kinds planned(const RunConfig& config, const MachineDescription& machine) {
  const MeshShape alone{1, 1, 1};
  const StepPieces p = step_pieces(config, machine.for_rank(machine.ranks_per_node, 0), {}, alone,
                                   rank_share_of(config, alone, scheme_of(config, alone, 1)), {});
  const double times = p.accumulation, layers = static_cast<double>(p.layers);
  return {times * (layers * 3 * p.products.all() + p.loss_product),
          times * layers * (p.attention_forward + p.attention_backward),
          times * (layers * (p.pointwise_forward + p.pointwise_backward + p.activation) +
                   p.embedding + p.loss_pointwise) +
              p.optimizer};
}

/// The median of a few steps, all ranks of `world` at the same time; of the slowest rank in each,
/// since the others wait for it.
Kinds measured(SmallRun& run, const Communicator& world) {
  constexpr int kSteps = 5;
  run.step();  // warms up
  std::vector<double> products, attention, pointwise;
  for (int i = 0; i < kSteps; ++i) {
    world.barrier();
    const Kinds kinds = run.step();
    products.push_back(world.all_reduce_max(kinds.products));
    attention.push_back(world.all_reduce_max(kinds.attention));
    pointwise.push_back(world.all_reduce_max(kinds.pointwise));
  }
  const auto median = [](std::vector<double>& seconds) {
    std::nth_element(seconds.begin(), seconds.begin() + kSteps / 2, seconds.end());
    return seconds[kSteps / 2];
  };
  return {median(products), median(attention), median(pointwise)};
}

/// What a step on `mesh`, all of `ranks`, takes longer than planned, attention aside, by the bytes
/// that a rank sends in it; of the slowest of `world`.
double longer_per_byte(const MachineDescription& machine, const Communicator& world,
                       const Communicator& ranks, int ranks_per_node, const MeshShape& mesh) {
  const RunConfig config = small_model(model::Precision::kFp32, mesh);
  SmallRun run(config, ranks, mesh);
  const Kinds found = measured(run, world);
  const model::SchemeChoice scheme = scheme_of(config, mesh, ranks.size());
  const StepEstimate planned =
      estimate_step(config, machine.for_rank(ranks_per_node, 0), {ranks.size(), ranks.size()}, mesh,
                    rank_share_of(config, mesh, scheme), {config.model.layers, 0, 0},
                    context_traffic(config, mesh, scheme.scheme, scheme.inner));
  const StepSeconds& p = planned.seconds;
  const double longer = found.products + found.pointwise -
                        (p.linear + p.pointwise + p.recompute + p.loss + p.exposed() + p.optimizer);
  const StepBytes& bytes = planned.bytes;
  return std::clamp(longer / (bytes.context + bytes.tensor + bytes.gradients), 0.0, 1e-6);
}

}  // namespace

InStep measure_in_step(const MachineDescription& alone, model::Precision precision,
                       const Communicator& world) {
  const MeshShape mesh{1, 1, 1};
  const RunConfig config = small_model(precision, mesh);
  SmallRun run(config, Communicator::self(), mesh);
  const Kinds found = measured(run, world), by_rates = planned(config, alone);
  return {found.products / by_rates.products, found.attention / by_rates.attention,
          found.pointwise / by_rates.pointwise};
}

Copying measure_copying(const MachineDescription& machine, const Communicator& world,
                        const Communicator& node) {
  // As many on every node, so that all do the same.
  const int ranks = node.size();
  if (world.all_reduce_min(std::int64_t{ranks}) < 2 ||
      world.all_reduce_max(std::int64_t{ranks}) != world.all_reduce_min(std::int64_t{ranks}))
    return {};
  Copying result;
  result.exchanges = longer_per_byte(machine, world, node, ranks, {1, ranks, 1});
  // As many tensor ranks as share the heads evenly; every group of them is alone with its model.
  if (const int tensor = std::gcd(ranks, 12); tensor > 1) {
    const Communicator group = node.split(node.rank() / tensor, node.rank(), "tensor ranks");
    result.tensor = longer_per_byte(machine, world, group, ranks, {1, 1, tensor});
  } else {
    result.tensor = result.exchanges;
  }
  return result;
}

}  // namespace longspan::launcher
