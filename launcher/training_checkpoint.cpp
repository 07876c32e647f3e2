/// How a training run leaves and comes back: the other half of training_run.hpp.
#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "io/checkpoint_reader.hpp"
#include "launcher/machine.hpp"
#include "launcher/options.hpp"
#include "launcher/resume.hpp"
#include "launcher/run_layout.hpp"
#include "launcher/training_run.hpp"
#include "parallel/agree.hpp"
#include "parallel/log.hpp"
#include "parallel/spill_file.hpp"

namespace longspan::launcher {
namespace {

constexpr std::size_t kLossHistory = 100;

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

}  // namespace

void TrainingRun::open_offload() {
  if (config_.memory.offload == model::Offload::kNone) return;
  if (config_.memory.offload == model::Offload::kHost) {
    offload_ = compute_.make_host_offload();
    model_->offload_to(*offload_);
    return;
  }
  agree(mesh_.world(), [&] {
    std::string directory = config_.memory.offload_directory;
    if (directory.empty()) {
      directory = config_.directory();
      std::error_code told_below;
      std::filesystem::create_directories(directory, told_below);  // other nodes may not share it
    }
    offload_ = std::make_unique<SpillFile>(
        directory, model::offloaded_bytes(config_.model, config_.memory, share_, memory_plan_.plan),
        backend_.device);
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
  return launcher::overlaps_saves(config_);
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
  if (facts.dataset_uuid.empty()) return;  // imported: nothing is to continue
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

void TrainingRun::take_over(const io::Attempt& attempt) {
  fence_ = std::make_unique<io::Fence>(config_.directory() + "/checkpoints", attempt);
}

void TrainingRun::require_ownership() const {
  const Communicator& world = mesh_.world();
  if (world.broadcast(std::int64_t{fence_ && fence_->lost()}, 0) == 0) return;
  agree(world, [&] {
    if (fence_) fence_->require();
  });
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
      agree(world, [&] { reader->read(arrays()); });
    } catch (const AgreedError& e) {
      if (e.status() != ExitStatus::kDamaged) throw;
      choice.reject(e.what());
      continue;
    }
    const io::CheckpointFacts& facts = reader->facts();
    progress_ = {facts.step, facts.tokens_seen, facts.next_sample, facts.loss_history};
    restored_.read = reader->bytes_read();
    for (const io::TensorEntry& tensor : reader->tensors())
      restored_.checkpoint +=
          element_count(tensor.global_shape) * static_cast<std::int64_t>(size_of(tensor.dtype));
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
                                                 config_.checkpoint.keep, world, fence_.get());
  if (overlaps_saves()) agree(world, [&] { saver_->reserve(written_arrays()); });
  if (progress_.losses.size() > kLossHistory)
    progress_.losses.erase(progress_.losses.begin(), progress_.losses.end() - kLossHistory);
  return path;
}

}  // namespace longspan::launcher
