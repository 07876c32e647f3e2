#include "launcher/training_run.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "launcher/elastic_mesh.hpp"
#include "launcher/machine.hpp"
#include "launcher/options.hpp"
#include "launcher/run_layout.hpp"
#include "launcher/world_check.hpp"
#include "model/replicated_gradients.hpp"
#include "parallel/agree.hpp"
#include "parallel/log.hpp"
#include "parallel/random.hpp"
#include "parallel/traced_group.hpp"

namespace longspan::launcher {
namespace {

io::TokenDataset open_agreed(const std::string& path, const Communicator& world) {
  std::optional<io::TokenDataset> dataset;
  agree(world, [&] {
    if (path.empty())
      fail_usage("data.path is not set: prepare a dataset with `longspan prepare` and name it");
    dataset.emplace(io::TokenDataset::open(path));
  });
  return std::move(*dataset);
}

RunConfig resolved(RunConfig config, const io::TokenDataset& dataset, const Communicator& world) {
  agree(world, [&] {
    const std::int64_t tokens = dataset.facts().vocabulary;
    if (config.model.vocabulary > 0 && config.model.vocabulary < tokens)
      fail_usage(
          "model.vocabulary={} but {} has token ids up to {}: set model.vocabulary={} or 0 (the "
          "dataset's)",
          config.model.vocabulary, dataset.facts().path, tokens - 1, tokens);
    resolve(config, tokens);
  });
  return config;
}

/// With groups that log.trace sees.
Compute traced(Compute compute) {
  compute.make_group = longspan::traced(std::move(compute.make_group));
  return compute;
}

/// Collective over the mesh. Nodes may hold different numbers of the ranks that share a sequence:
/// groups that fit all of them fit everywhere.
model::SchemeChoice scheme_on(const RunConfig& config, const Mesh& mesh) {
  std::int64_t per_node = 0;
  for (const std::int64_t ranks :
       mesh.world().all_gather(std::int64_t{mesh.context().split_by_node().size()}))
    per_node = std::gcd(per_node, ranks);
  return scheme_of(config, mesh.shape(), static_cast<int>(per_node));
}

MeshShape mesh_of(RunConfig config, const io::TokenDataset& dataset, const Communicator& world,
                  std::string& reason) {
  MeshChoice choice;
  agree(world, [&] {
    resolve(config, dataset.facts().vocabulary);
    choice = choose_mesh(config, world.size());
  });
  reason = choice.why;
  return choice.shape;
}

}  // namespace

TrainingRun::TrainingRun(RunConfig config, const Communicator& world, Compute compute)
    : dataset_(open_agreed(config.data.path, world)),
      mesh_(world, mesh_of(config, dataset_, world, mesh_reason_)),
      threads_(set_threads(config.run.threads, world)),
      compute_(config.log.trace.empty() ? std::move(compute) : traced(std::move(compute))),
      profile_(config.log.profile ? std::make_unique<model::ProfiledKernels>(compute_.backend)
                                  : nullptr),
      trace_(config.log.trace.empty()
                 ? nullptr
                 : std::make_unique<model::TracedKernels>(
                       profile_ ? compute_.with(*profile_).backend : compute_.backend)),
      backend_(trace_     ? compute_.with(*trace_).backend
               : profile_ ? compute_.with(*profile_).backend
                          : compute_.backend) {
  config_ = resolved(std::move(config), dataset_, world);
  if (config_.memory.offload == model::Offload::kHost && !compute_.make_host_offload) {
    log::info("memory.offload=host: on the CPU block inputs are in the host's memory already");
    config_.memory.offload = model::Offload::kNone;
  }
  const MeshShape& shape = mesh_.shape();
  config_.mesh = {shape.data, shape.context, shape.tensor, config_.mesh.elastic};
  if (config_.train.global_batch == 0)
    config_.train.global_batch = config_.train.micro_batch * shape.data;
  check_same_everywhere(rank_facts(config_, dataset_.facts().uuid, dataset_.facts().tokens), world);
  agree(world, [&] { accumulation_ = accumulation_of(config_, shape); });
  agree(world, [&] {
    if (const auto problems = tensor_problems(config_.model, shape.tensor); !problems.empty())
      throw Error(fmt::format("{}", fmt::join(problems, "\n")), ExitStatus::kUsage);
  });

  if (shape.context > 1) context_group_ = compute_.make_group(mesh_.context());
  if (shape.tensor > 1) tensor_group_ = compute_.make_group(mesh_.tensor());
  gradient_group_ = compute_.make_group(mesh_.replicas());
  const bool causal = config_.attention.mask == model::MaskKind::kCausal;
  SequenceShards shards =
      shard_sequence(config_.data.sequence_length, layout_for(causal, config_.attention.window),
                     context_group_.get(), shape.tensor);

  scheme_ = scheme_on(config_, mesh_);
  if (scheme_.scheme == model::AttentionSchemeKind::kHybrid)
    split_context(shards, mesh_.context(), scheme_.inner, compute_.make_group);
  model::AttentionConfig attention = config_.attention;
  attention.scheme = scheme_.scheme;

  plan_.positions_T = shards.mine();
  plan_.sequence_length = config_.data.sequence_length;
  plan_.micro_batch = config_.train.micro_batch;
  plan_.data_index = mesh_.data_index();
  plan_.data_size = shape.data;
  plan_.documents = config_.data.pack == io::Pack::kDocuments;
  agree(world, [&] {
    io::Sampler(config_.run.seed, dataset_.split_tokens(io::Split::kTrain),
                config_.data.sequence_length);
    if (config_.train.validate_every == 0) return;
    const std::int64_t valid = dataset_.split_tokens(io::Split::kValid);
    if (valid <= config_.data.sequence_length)
      fail_usage(
          "train.validate-every={} but the validation split of {} has {} tokens and a sequence "
          "needs {}: prepare it "
          "with a larger --validation, or set train.validate-every=0",
          config_.train.validate_every, dataset_.facts().path, valid,
          config_.data.sequence_length + 1);
  });

  share_ = rank_share_of(config_, shape, scheme_);
  // The copy that a checkpoint is written from lies in the host's memory.
  if (!backend_.device.host_accessible()) share_.staging = 0;
  const model::OptimizerShard shard = share_.shard;
  gpu_room_ = find_gpu_room(compute_, config_, share_, world);
  const MemoryLimit limit = gpu_room_ ? gpu_memory_limit(config_.memory.budget, *gpu_room_, world)
                                      : memory_limit(config_.memory.budget, world);
  agree(world, [&] { memory_plan_ = plan_memory(config_, share_, limit); });
  agree(world, [&] {
    if (gpu_room_)
      reserved_bytes_ =
          reserve_gpu_memory(compute_, *gpu_room_, memory_estimate().total(), config_, share_);
  });
  agree(world, [&] {
    model_ = std::make_unique<model::Transformer>(config_.model, attention, config_.memory,
                                                  std::move(shards), backend_, memory_plan_.plan,
                                                  shard, shard_weights(tensor_group_.get()));
    sharding_ = std::make_unique<model::ParameterSharding>(
        shard, model_->parameters(), *gradient_group_, mesh_.replicas(), backend_);
    optimizer_ = std::make_unique<model::AdamW>(model_->parameters(), *sharding_, config_.optimizer,
                                                backend_);
  });
}

double TrainingRun::step_flops() const {
  return model::model_flops(config_.model, config_.attention, config_.train.global_batch,
                            config_.data.sequence_length)
      .total();
}

double TrainingRun::recomputed_step_flops() const {
  return model::recomputed_flops(config_.model, config_.attention, memory_plan_.plan,
                                 config_.train.global_batch, config_.data.sequence_length);
}

model::MemoryEstimate TrainingRun::memory_estimate() const {
  return model::memory_estimate(config_.model, config_.memory, share_, memory_plan_.plan);
}

ByAxis TrainingRun::exposed_seconds() const {
  return {model_->shards().exposed_seconds(),
          tensor_group_ ? tensor_group_->exposed_seconds() : 0.0,
          gradient_group_->exposed_seconds()};
}

ByAxis TrainingRun::bytes_sent() const {
  return {static_cast<double>(model_->shards().bytes_sent()),
          tensor_group_ ? static_cast<double>(tensor_group_->bytes_sent()) : 0.0,
          static_cast<double>(gradient_group_->bytes_sent())};
}

void TrainingRun::finish_gradients() {
  sharding_->finish_gradients();
  model::sum_replicated_gradients(model_->parameters(), sharding_->owned(), model_->tensor(),
                                  backend_);
}

double TrainingRun::gradient_norm() const {
  if (model_->tensor().alone()) return optimizer_->gradient_norm();
  return std::sqrt(
      mesh_.tensor().all_reduce_sum(sharding_->sum_over_owners(model::sum_of_squares_once(
          model_->parameters(), sharding_->owned(), model_->tensor(), backend_))));
}

model::MicroBatch TrainingRun::micro_batch(const io::Batch& batch) const {
  const auto view = [](const std::vector<std::int32_t>& v) {
    return View<const std::int32_t>(v.data(), static_cast<std::int64_t>(v.size()));
  };
  model::MicroBatch result;
  result.sequences = static_cast<std::int64_t>(batch.sequences_B.size());
  result.inputs_BT = view(batch.inputs_BT);
  result.targets_BT = view(batch.targets_BT);
  result.documents_BT = view(batch.documents_BT);
  result.sequence_numbers_B = {batch.sequences_B.data(), result.sequences};
  const std::uint64_t dropout = derive_key(config_.run.seed, hash_name("dropout"));
  result.dropout_key = derive_key(dropout, static_cast<std::uint64_t>(progress_.step));
  return result;
}

double TrainingRun::validate() {
  io::Loader loader(dataset_, io::Split::kValid, 0, false, plan_, 0);
  const std::int64_t wanted = std::min(config_.train.validate_sequences, loader.windows());
  const std::int64_t at_once = plan_.micro_batch * plan_.data_size;
  double sum = 0;
  std::int64_t valid = 0;
  for (std::int64_t first = 0; first < wanted; first += at_once) {
    io::Batch batch = loader.next();
    const std::int64_t tokens = static_cast<std::int64_t>(plan_.positions_T.size());
    // The last round may reach beyond what was asked for: the same sequences count on every mesh.
    for (std::size_t b = 0; b < batch.sequences_B.size(); ++b)
      if (batch.sequences_B[b] >= wanted)
        std::fill_n(batch.targets_BT.begin() + static_cast<std::ptrdiff_t>(b) * tokens, tokens, -1);
    valid += std::count_if(batch.targets_BT.begin(), batch.targets_BT.end(),
                           [](std::int32_t t) { return t >= 0; });
    sum += model_->evaluate(micro_batch(batch));
  }
  // Every tensor rank has counted the targets of all its context rank's tokens, but summed the
  // losses of its own.
  return mesh_.world().all_reduce_sum(sum) /
         static_cast<double>(mesh_.replicas().all_reduce_sum(valid));
}

std::string TrainingRun::diagnose(const std::vector<io::Batch>& batches) {
  std::string culprit;
  for (const io::Batch& batch : batches) {
    const std::string found = model_->first_non_finite(micro_batch(batch));
    if (culprit.empty()) culprit = found;
  }
  // The lowest rank that saw something speaks for all.
  const Communicator& world = mesh_.world();
  const std::int64_t first =
      world.all_reduce_min(std::int64_t{culprit.empty() ? world.size() : world.rank()});
  if (first < world.size()) return world.broadcast(culprit, static_cast<int>(first));
  const std::string gradient = non_finite_gradient();
  return gradient.empty() ? "nothing bad was found when the step was repeated"
                          : "gradient of " + gradient;
}

std::string TrainingRun::non_finite_gradient() const {
  const auto& parameters = model_->parameters().parameters();
  const auto bad = [&](const model::Parameter& p) {
    return std::any_of(
        sharding_->owned().begin(), sharding_->owned().end(), [&](const model::OwnedRange& mine) {
          const std::int64_t from = std::max(p.offset, mine.range.begin),
                             to = std::min(p.offset + p.count(), mine.range.end());
          return from < to &&
                 !std::isfinite(backend_.kernels.sum_of_squares(
                     to - from, mine.gradient + (from - mine.range.begin), backend_.stream));
        });
  };
  // The last parameter is the first that backward meets. Its parts have different owners.
  std::int64_t id = static_cast<std::int64_t>(parameters.size()) - 1;
  while (id >= 0 && !bad(parameters[static_cast<std::size_t>(id)])) --id;
  id = mesh_.world().all_reduce_max(id);
  return id < 0 ? "" : parameters[static_cast<std::size_t>(id)].name;
}

}  // namespace longspan::launcher
