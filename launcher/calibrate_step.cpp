#include "launcher/calibrate_step.hpp"

#include <algorithm>
#include <chrono>
#include <vector>

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

RunConfig small_model(model::Precision precision) {
  return resolved_for(
      parse_config("", {"--model.layers", "2", "--model.width", "384", "--model.heads", "6",
                        "--model.vocabulary", "256", "--model.precision", name_of(precision),
                        "--data.sequence-length", "1536", "--train.global-batch", "2",
                        "--train.micro-batch", "1", "--memory.keep", "all"}),
      1);
}

/// One rank's steps of `config`, alone in its mesh.
class SmallRun {
 public:
  explicit SmallRun(const RunConfig& config)
      : config_(config),
        kernels_(model::cpu_backend()),
        backend_{model::cpu_backend().device, kernels_, model::cpu_backend().stream},
        mesh_(Communicator::self(), {1, 1, 1}),
        group_(make_mpi_group(mesh_.replicas())),
        model_(config.model, config.attention, config.memory,
               shard_sequence(config.data.sequence_length, SequenceLayout::kZigzag, nullptr, 1),
               backend_, {}, model::OptimizerShard::kNone, shard_weights(nullptr)),
        sharding_(model::OptimizerShard::kNone, model_.parameters(), *group_, mesh_.replicas(),
                  backend_),
        optimizer_(model_.parameters(), sharding_, config.optimizer, backend_),
        ids_(static_cast<std::size_t>(config.data.sequence_length)) {
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
  std::unique_ptr<ProcessGroup> group_;
  model::Transformer model_;
  model::ParameterSharding sharding_;
  model::AdamW optimizer_;
  std::vector<std::int32_t> ids_;
  std::int64_t step_ = 0;
};

Kinds planned(const RunConfig& config, const MachineDescription& rank) {
  const MeshShape alone{1, 1, 1};
  const Placement placement;
  const StepPieces p = step_pieces(config, rank, placement, alone,
                                   rank_share_of(config, alone, scheme_of(config, alone, 1)), {});
  const double times = p.accumulation, layers = static_cast<double>(p.layers);
  return {times * (layers * 3 * p.products.all() + p.loss_product),
          times * layers * (p.attention_forward + p.attention_backward),
          times * (layers * (p.pointwise_forward + p.pointwise_backward) + p.embedding +
                   p.loss_pointwise) +
              p.optimizer};
}

}  // namespace

InStep measure_in_step(const MachineDescription& alone, model::Precision precision,
                       const Communicator& world) {
  constexpr int kSteps = 5;
  const RunConfig config = small_model(precision);
  SmallRun run(config);
  run.step();  // warms up
  std::vector<double> products, attention, pointwise;
  for (int i = 0; i < kSteps; ++i) {
    world.barrier();
    const Kinds kinds = run.step();
    products.push_back(kinds.products);
    attention.push_back(kinds.attention);
    pointwise.push_back(kinds.pointwise);
  }
  const auto slowest = [&](std::vector<double>& seconds) {
    std::nth_element(seconds.begin(), seconds.begin() + kSteps / 2, seconds.end());
    return world.all_reduce_max(seconds[kSteps / 2]);
  };
  const Kinds by_rates = planned(config, alone.for_rank(alone.ranks_per_node, 0));
  return {slowest(products) / by_rates.products, slowest(attention) / by_rates.attention,
          slowest(pointwise) / by_rates.pointwise};
}

}  // namespace longspan::launcher
