#include "launcher/training_run.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <set>
#include <utility>

#include "io/checkpoint_reader.hpp"
#include "launcher/machine.hpp"
#include "launcher/options.hpp"
#include "launcher/resume.hpp"
#include "model/replicated_gradients.hpp"
#include "parallel/agree.hpp"
#include "parallel/log.hpp"
#include "parallel/random.hpp"

namespace longspan::launcher {
namespace {

constexpr std::size_t kLossHistory = 100;

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
    if (config.run.device == "cuda")
      fail_usage(
          "run.device=cuda: this build has no GPU plug-in (liblongspan_cuda.so): set "
          "run.device=cpu");
    resolve(config, tokens);
  });
  return config;
}

/// Ranks that would train on different settings or data give wrong gradients without a word:
/// compare before the first step.
void check_same_everywhere(const RunConfig& config, const io::TokenDataset& dataset,
                           const Communicator& world) {
  const auto mine =
      static_cast<std::int64_t>(hash_name(to_ini(config) + dataset.facts().uuid) >> 1);
  const auto all = world.all_gather(mine);
  for (std::size_t r = 1; r < all.size(); ++r)
    if (all[r] != all[0])
      throw AgreedError(
          fmt::format(
              "rank {} has another configuration or another dataset at {} than rank 0: start every "
              "rank with the same arguments and give every node the same file",
              r, config.data.path),
          ExitStatus::kUsage);
}

int accumulation_of(const RunConfig& config, const MeshShape& mesh) {
  const std::int64_t at_once = config.train.micro_batch * mesh.data;
  if (config.train.global_batch % at_once != 0)
    throw AgreedError(fmt::format("train.global-batch={} is not a multiple of train.micro-batch={} "
                                  "* mesh.data={}: set it to {}",
                                  config.train.global_batch, config.train.micro_batch, mesh.data,
                                  (config.train.global_batch / at_once + 1) * at_once),
                      ExitStatus::kUsage);
  return static_cast<int>(config.train.global_batch / at_once);
}

/// What differs in the shape of the model, as "section.key=value, ..." of each side. The tensors
/// alone do not tell: with other heads or fewer layers they can all be there, with the right
/// shapes, and mean something else.
std::pair<std::string, std::string> differing_model_settings(const RunConfig& saved,
                                                             const RunConfig& ours) {
  std::set<std::string> shape = {"model.layers",    "model.width",          "model.heads",
                                 "model.kv-heads",  "model.head-size",      "model.mlp",
                                 "model.mlp-width", "model.norm",           "model.position",
                                 "model.bias",      "model.tie-embeddings", "model.vocabulary"};
  if (ours.model.position == model::PositionKind::kLearned) shape.insert("model.max-positions");
  const auto left = describe_options(saved), right = describe_options(ours);
  std::pair<std::string, std::string> differ;
  for (std::size_t i = 0; i < left.size(); ++i) {
    if (shape.count(left[i].name) == 0 || left[i].value == right[i].value) continue;
    const char* separator = differ.first.empty() ? "" : ", ";
    differ.first += fmt::format("{}{}={}", separator, left[i].name, left[i].value);
    differ.second += fmt::format("{}{}={}", separator, right[i].name, right[i].value);
  }
  return differ;
}

/// The share of a block that this rank writes when `alike` tensor ranks hold the same one. Whole
/// parameters: all ranks that hold it split its rows. Shared ones: the first tensor rank that owns
/// it writes it.
ShardedArray share_to_write(ShardedArray array, int alike, bool whole, const Mesh& mesh) {
  const int place = mesh.tensor_index() % alike;
  if (whole)
    return rows_of_replica(array, mesh.replicas().rank() * alike + place,
                           mesh.replicas().size() * alike);
  if (place > 0 && !array.shape.empty()) array.shape[0] = 0;
  return array;
}

model::AttentionMask mask_of(const model::AttentionConfig& attention) {
  return {attention.mask == model::MaskKind::kCausal, attention.window};
}

/// Collective over the mesh. Nodes may hold different numbers of the ranks that share a sequence:
/// groups that fit all of them fit everywhere.
model::SchemeChoice scheme_of(const RunConfig& config, const Mesh& mesh) {
  std::int64_t per_node = 0;
  for (const std::int64_t ranks :
       mesh.world().all_gather(std::int64_t{mesh.context().split_by_node().size()}))
    per_node = std::gcd(per_node, ranks);
  const model::ModelConfig part = model::part_of_model(config.model, mesh.shape().tensor);
  const model::AttentionGeometry geometry{part.heads, part.kv_heads, part.head_size,
                                          mask_of(config.attention), 1.0f};
  return model::choose_scheme(
      config.attention.scheme, geometry,
      {config.train.micro_batch, config.data.sequence_length, mesh.shape().context},
      static_cast<int>(per_node));
}

MeshShape mesh_of(const RunConfig& config, const Communicator& world) {
  MeshShape shape;
  agree(world, [&] { shape = resolve_mesh(config.mesh, world.size()); });
  return shape;
}

}  // namespace

TrainingRun::TrainingRun(RunConfig config, const Communicator& world)
    : dataset_(open_agreed(config.data.path, world)),
      mesh_(world, mesh_of(config, world)),
      threads_(set_threads(config.run.threads, world)),
      backend_(model::cpu_backend()) {
  config_ = resolved(std::move(config), dataset_, world);
  const MeshShape& shape = mesh_.shape();
  config_.mesh = {shape.data, shape.context, shape.tensor};
  if (config_.train.global_batch == 0)
    config_.train.global_batch = config_.train.micro_batch * shape.data;
  check_same_everywhere(config_, dataset_, world);
  accumulation_ = accumulation_of(config_, shape);
  agree(world, [&] {
    if (const auto problems = tensor_problems(config_.model, shape.tensor); !problems.empty())
      throw Error(fmt::format("{}", fmt::join(problems, "\n")), ExitStatus::kUsage);
  });

  if (shape.context > 1) context_group_ = make_mpi_group(mesh_.context());
  if (shape.tensor > 1) tensor_group_ = make_mpi_group(mesh_.tensor());
  gradient_group_ = make_mpi_group(mesh_.replicas());
  const bool causal = config_.attention.mask == model::MaskKind::kCausal;
  SequenceShards shards =
      shard_sequence(config_.data.sequence_length, layout_for(causal, config_.attention.window),
                     context_group_.get(), shape.tensor);

  scheme_ = scheme_of(config_, mesh_);
  if (scheme_.scheme == model::AttentionSchemeKind::kHybrid)
    split_context(shards, mesh_.context(), scheme_.inner);
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

  // One rank has nothing to share.
  const model::OptimizerShard shard =
      mesh_.replicas().size() > 1 ? config_.optimizer.shard : model::OptimizerShard::kNone;
  share_.sequences = plan_.micro_batch;
  share_.tokens = shards.tokens();
  share_.context = shape.context;
  share_.scheme = scheme_.scheme;
  share_.mask = mask_of(config_.attention);
  share_.inner = scheme_.inner;
  share_.tensor = shape.tensor;
  share_.shard = shard;
  share_.owners = mesh_.replicas().size();
  // Weights and two moments, of which each rank writes its share.
  if (overlaps_saves())
    share_.staging = (12 * model::parameter_count(config_.model) + world.size() - 1) / world.size();
  const MemoryLimit limit = memory_limit(config_.memory.budget, world);
  agree(world, [&] { memory_plan_ = plan_memory(config_, share_, limit); });
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

model::MemoryEstimate TrainingRun::memory_estimate() const {
  return model::memory_estimate(config_.model, config_.memory, share_, memory_plan_.plan);
}

double TrainingRun::communication_seconds() const {
  return gradient_group_->exposed_seconds() + model_->shards().exposed_seconds() +
         (tensor_group_ ? tensor_group_->exposed_seconds() : 0.0);
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

void TrainingRun::open_offload() {
  if (config_.memory.offload == model::Offload::kNone) return;
  agree(mesh_.world(), [&] {
    std::string directory = config_.memory.offload_directory;
    if (directory.empty()) {
      directory = config_.directory();
      std::error_code told_below;
      std::filesystem::create_directories(directory, told_below);  // other nodes may not share it
    }
    offload_ = std::make_unique<SpillFile>(
        directory,
        model::offloaded_bytes(config_.model, config_.memory, share_, memory_plan_.plan));
    model_->offload_to(*offload_);
  });
}

std::vector<ShardedArray> TrainingRun::arrays() const {
  std::vector<model::FlatPiece> weights;
  for (const model::OwnedRange& mine : sharding_->owned())
    weights.push_back({mine.range, mine.weight});
  auto arrays = model_->parameters().arrays("model/", weights);
  for (auto& array : optimizer_->arrays()) arrays.push_back(std::move(array));
  return arrays;
}

std::vector<ShardedArray> TrainingRun::written_arrays() const {
  std::vector<ShardedArray> mine = arrays();
  for (ShardedArray& array : mine)
    array = share_to_write(array, model_->parameters().replicas_of(array.name), sharding_->whole(),
                           mesh_);
  return mine;
}

bool TrainingRun::overlaps_saves() const {
  // The last save is waited for anyway.
  return config_.checkpoint.overlap && config_.checkpoint.every > 0 &&
         config_.checkpoint.every < config_.train.steps;
}

std::string TrainingRun::save(bool in_background) {
  const Communicator& world = mesh_.world();
  io::CheckpointFacts facts;
  facts.step = progress_.step;
  facts.tokens_seen = progress_.tokens;
  facts.seed = config_.run.seed;
  facts.next_sample = progress_.next_sample;
  facts.dataset_uuid = dataset_.facts().uuid;
  facts.tokenizer = dataset_.facts().tokenizer;
  facts.data = mesh_.shape().data, facts.context = mesh_.shape().context,
  facts.tensor = mesh_.shape().tensor, facts.world_size = world.size();
  facts.config = to_ini(config_);
  facts.program_version = version_line();
  facts.loss_history = progress_.losses;
  if (!in_background) return saver_->save(written_arrays(), facts);
  saver_->start(written_arrays(), std::move(facts));
  return "";
}

void TrainingRun::check_fits(const io::CheckpointFacts& facts, const std::string& path) const {
  const RunConfig saved = parse_ini(facts.config);
  if (const auto [theirs, ours] = differing_model_settings(saved, config_); !theirs.empty())
    fail_damaged(
        "{} was trained with {} but this run has {} ({}): use its settings and its dataset, or "
        "start afresh with "
        "checkpoint.resume=never in another run.directory",
        path, theirs, ours, config_.data.path);
  if (facts.dataset_uuid != dataset_.facts().uuid)
    log::warn("{} was trained on another dataset than {}: its data order does not continue", path,
              config_.data.path);
  else if (facts.seed != config_.run.seed ||
           saved.data.sequence_length != config_.data.sequence_length)
    log::warn(
        "{} was trained with run.seed={} and data.sequence-length={}: its data order does not "
        "continue",
        path, facts.seed, saved.data.sequence_length);
}

std::string TrainingRun::restore() {
  const Communicator& world = mesh_.world();
  open_offload();
  ResumeChoice choice(config_.checkpoint.resume, config_.directory() + "/checkpoints", world);
  while (!choice.path().empty()) {
    std::optional<io::CheckpointReader> reader;
    try {
      agree(world, [&] { reader.emplace(choice.path()); });
    } catch (const AgreedError& e) {
      if (e.status() != ExitStatus::kDamaged) throw;
      choice.reject(e.what());
      continue;
    }
    // Not a damage: an older one would not fit either.
    agree(world, [&] { check_fits(reader->facts(), choice.path()); });
    try {
      agree(world, [&] {
        for (const ShardedArray& array : arrays()) reader->read(array);
      });
    } catch (const AgreedError& e) {
      if (e.status() != ExitStatus::kDamaged) throw;
      choice.reject(e.what());
      continue;
    }
    const io::CheckpointFacts& facts = reader->facts();
    progress_ = {facts.step, facts.tokens_seen, facts.next_sample, facts.loss_history};
    choice.settle();
    break;
  }
  const std::string path = choice.path();
  if (path.empty())
    sharding_->initialize(config_.run.seed);
  else
    sharding_->updated();
  agree(world, [&] {
    loader_ = std::make_unique<io::Loader>(dataset_, io::Split::kTrain, config_.run.seed, true,
                                           plan_, progress_.next_sample);
  });
  saver_ = std::make_unique<io::CheckpointSaver>(config_.directory() + "/checkpoints",
                                                 config_.checkpoint.keep, world);
  if (overlaps_saves()) agree(world, [&] { saver_->reserve(written_arrays()); });
  if (progress_.losses.size() > kLossHistory)
    progress_.losses.erase(progress_.losses.begin(), progress_.losses.end() - kLossHistory);
  return path;
}

}  // namespace longspan::launcher
