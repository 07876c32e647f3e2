#include "launcher/calibrate_step.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>
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

/// Of a small model.
struct Size {
  int width, tokens;
};
constexpr Size kSmall{384, 1536}, kSmaller{192, 768};

/// Heads of 64 channels, as attention alone is measured, unless the tensor ranks cannot share them.
int heads_of(int width, int tensor) {
  const int heads = width / 64;
  return heads % tensor == 0 ? heads : 4 % tensor == 0 ? 4 : tensor <= 6 ? 6 : 12;
}

/// On `mesh`; `sequences` of a step and a data rank.
RunConfig small_model(const Size& size, model::Precision precision, const MeshShape& mesh,
                      int sequences) {
  return resolved_for(
      parse_config("", {"--model.layers",         "2",
                        "--model.width",          std::to_string(size.width),
                        "--model.heads",          std::to_string(heads_of(size.width, mesh.tensor)),
                        "--model.vocabulary",     "264",
                        "--model.precision",      name_of(precision),
                        "--data.sequence-length", std::to_string(size.tokens),
                        "--train.global-batch",   std::to_string(sequences),
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

/// Seconds in a step / seconds by the rates.
struct InStep {
  double products = 1, attention = 1, pointwise = 1;
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

/// The small model on one mesh, and the seconds of each of its steps.
struct Sample {
  MeshShape mesh;
  RunConfig config;
  std::vector<double> products, attention, pointwise, total;

  /// A few more steps, all ranks of `world` at the same time; of the slowest rank in each, since
  /// the others wait for it. The model is gone afterwards, and what stands behind it too: threads,
  /// groups, memory.
  void add_steps(const Communicator& ranks, const Communicator& world) {
    constexpr int kSteps = 3;
    SmallRun run(config, ranks, mesh);
    run.step();  // warms up
    for (int i = 0; i < kSteps; ++i) {
      world.barrier();
      const Kinds kinds = run.step();
      products.push_back(world.all_reduce_max(kinds.products));
      attention.push_back(world.all_reduce_max(kinds.attention));
      pointwise.push_back(world.all_reduce_max(kinds.pointwise));
      total.push_back(world.all_reduce_max(kinds.products + kinds.attention + kinds.pointwise));
    }
    world.barrier();
  }
};

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

InStep against_rates(const Sample& sample, const MachineDescription& machine) {
  const Kinds by_rates = planned(sample.config, machine);
  return {median(sample.products) / by_rates.products,
          median(sample.attention) / by_rates.attention,
          median(sample.pointwise) / by_rates.pointwise};
}

/// What its steps take longer than planned.
double longer(const Sample& sample, const StepEstimate& planned) {
  const StepSeconds& p = planned.seconds;
  return median(sample.total) -
         (p.linear + p.attention + p.pointwise + p.recompute + p.loss + p.exposed() + p.optimizer);
}

StepEstimate planned(const Sample& sample, const MachineDescription& machine, int ranks_per_node) {
  const MeshShape& mesh = sample.mesh;
  const int ranks = mesh.context * mesh.tensor;
  const model::SchemeChoice scheme = scheme_of(sample.config, mesh, ranks);
  return estimate_step(sample.config, machine.for_rank(ranks_per_node, 0), {ranks, ranks}, mesh,
                       rank_share_of(sample.config, mesh, scheme),
                       {sample.config.model.layers, 0, 0},
                       context_traffic(sample.config, mesh, scheme.scheme, scheme.inner));
}

}  // namespace

void correct_by_steps(MachineDescription& machine, const Communicator& world,
                      const Communicator& node) {
  constexpr int kRounds = 3;
  const int ranks = node.size();
  std::vector<Sample> alone, sequence, weights;
  for (const model::Precision precision : {model::Precision::kFp32, model::Precision::kBf16}) {
    const MeshShape mesh{1, 1, 1};
    alone.push_back({mesh, small_model(kSmall, precision, mesh, 1), {}, {}, {}, {}});
  }
  // As many on every node, so that all do the same. As many tensor ranks as share the heads evenly:
  // every group of them is alone with its model.
  const int tensor = std::gcd(ranks, 12);
  if (world.all_reduce_min(std::int64_t{ranks}) > 1 &&
      world.all_reduce_max(std::int64_t{ranks}) == world.all_reduce_min(std::int64_t{ranks})) {
    // Of two sizes: a byte takes the more, the smaller the messages are.
    for (const auto& [size, sequences] : {std::pair{kSmall, 2}, {kSmaller, 4}}) {
      const auto add = [&](std::vector<Sample>& to, const MeshShape& mesh) {
        to.push_back(
            {mesh, small_model(size, model::Precision::kFp32, mesh, sequences), {}, {}, {}, {}});
      };
      add(sequence, {1, ranks, 1});
      if (tensor > 1) add(weights, {1, 1, tensor});
    }
  }
  const Communicator sharers = node.split(node.rank() / tensor, node.rank(), "tensor ranks");
  // In turns: what is compared is measured while the machine is as fast.
  for (int i = 0; i < kRounds; ++i) {
    for (Sample& sample : alone) sample.add_steps(Communicator::self(), world);
    for (Sample& sample : sequence) sample.add_steps(node, world);
    for (Sample& sample : weights) sample.add_steps(sharers, world);
  }

  const InStep in_fp32 = against_rates(alone.front(), machine),
               in_bf16 = against_rates(alone.back(), machine);
  for (const auto& [rates, in_step] :
       {std::pair{&machine.fp32, &in_fp32}, {&machine.bf16, &in_bf16}}) {
    rates->linear_flops *= 1 / in_step->products;
    rates->attention_forward_flops *= 1 / in_step->attention;
    rates->attention_backward_flops *= 1 / in_step->attention;
  }
  machine.pointwise_bandwidth /= in_fp32.pointwise;
  if (sequence.empty()) return;

  // Seconds that all of `samples` take longer / the bytes that they touch.
  const auto per_byte = [&](const std::vector<Sample>& samples) {
    double seconds = 0, bytes = 0;
    for (const Sample& sample : samples) {
      const StepEstimate by_rates = planned(sample, machine, ranks);
      seconds += longer(sample, by_rates);
      bytes += by_rates.bytes.context + by_rates.bytes.gradients +
               tensor_array_bytes(by_rates.bytes, sample.mesh.tensor);
    }
    return std::clamp(seconds / bytes, 0.0, 1e-6);
  };
  const double exchanges = per_byte(sequence),
               arrays = weights.empty() ? exchanges : per_byte(weights);
  for (MachineLink* link : {&machine.inside, &machine.between}) {
    link->core_seconds_per_byte = exchanges;
    link->tensor_core_seconds_per_byte = arrays;
  }
}

}  // namespace longspan::launcher
