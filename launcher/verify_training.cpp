#include "launcher/verify_training.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <tuple>
#include <utility>

#include "model/adamw.hpp"
#include "model/oracle.hpp"
#include "model/parameter_sharding.hpp"
#include "model/replicated_gradients.hpp"
#include "parallel/host_copy.hpp"
#include "parallel/random.hpp"

namespace longspan::launcher {
namespace {

using namespace model;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr std::uint64_t kKey = 0x76657269;

/// Bit for bit, and no NaN.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0 &&
         std::none_of(a.begin(), a.end(), [](T x) { return std::isnan(x); });
}

/// The whole tensors of `store`, one after the other, from the runs that the ranks of `world` own:
/// their weights, or their gradients. See TrainingOutcome for NaN. Collective over `world`.
std::vector<float> put_together(const ParameterStore& store, const std::vector<OwnedRange>& owned,
                                float* OwnedRange::*values, Backend backend,
                                const Communicator& world) {
  std::int64_t total = 0;
  for (const Parameter& p : store.parameters()) total += element_count(p.global_shape);
  std::vector<float> mine(static_cast<std::size_t>(total), kNan);
  std::deque<OnHost<float>> runs;
  for (const OwnedRange& run : owned)
    runs.emplace_back(backend.device, backend.stream,
                      View<const float>(run.*values, run.range.count));
  std::int64_t begin_of_tensor = 0;
  for (const Parameter& p : store.parameters()) {
    const std::int64_t columns = p.shape.back(), all_columns = p.global_shape.back();
    const std::int64_t first_row = p.shape.size() > 1 ? p.block_offset.front() : 0;
    for (std::size_t r = 0; r < owned.size(); ++r) {
      const OwnedRange& run = owned[r];
      const std::int64_t end = std::min(run.range.end(), p.offset + p.count());
      for (std::int64_t i = std::max(run.range.begin, p.offset); i < end; ++i) {
        const std::int64_t row = first_row + (i - p.offset) / columns,
                           column = p.block_offset.back() + (i - p.offset) % columns;
        mine[static_cast<std::size_t>(begin_of_tensor + row * all_columns + column)] =
            runs[r][i - run.range.begin];
      }
    }
    begin_of_tensor += element_count(p.global_shape);
  }
  std::vector<float> all(mine.size() * static_cast<std::size_t>(world.size()));
  make_mpi_group(world)
      ->all_gather({mine.data(), total}, {all.data(), static_cast<std::int64_t>(all.size())})
      ->wait();
  for (std::size_t i = 0; i < mine.size(); ++i) {
    bool agrees = true;
    const float* found = nullptr;
    for (std::size_t at = i; at < all.size(); at += mine.size()) {
      if (std::isnan(all[at])) continue;
      if (found == nullptr) found = &all[at];
      agrees = agrees && std::memcmp(found, &all[at], sizeof(float)) == 0;
    }
    mine[i] = found != nullptr && agrees ? *found : kNan;
  }
  return mine;
}

}  // namespace

TrainingProblem training_problem(const std::string& model, int ranks) {
  const bool gpt2 = model == "gpt2", documents = model == "llama" || model == "llama-bf16";
  TrainingProblem problem;
  problem.sequences = std::max(12, 2 * ranks);  // in every micro-batch of every rank
  problem.documents = documents;
  ModelConfig& config = problem.config;
  config.layers = 2, config.width = 32, config.heads = 4, config.head_size = 8;
  config.kv_heads = gpt2 ? 4 : 2;
  config.mlp_width = 48, config.vocabulary = 52, config.max_positions = problem.tokens;
  config.tie_embeddings = gpt2;
  if (model == "llama-bf16") config.precision = Precision::kBf16;
  if (model == "window") {
    // Over the border of a shard, over one or two ranks.
    problem.attention.window = 9;
    problem.layout = SequenceLayout::kContiguous;
  }
  if (gpt2) {
    config.mlp = MlpKind::kGelu, config.norm = NormKind::kLayerNorm;
    config.position = PositionKind::kLearned, config.bias = true, config.dropout = 0.1f;
  }
  constexpr std::int64_t kDocumentTokens = 11;
  for (std::uint64_t number = 0; number < 3; ++number) {
    TrainingProblem::Batch& batch = problem.batches.emplace_back();
    for (std::int64_t b = 0; b < problem.sequences; ++b) {
      const auto token = [&](std::int64_t p) {
        const auto words =
            philox(kKey + number, static_cast<std::uint64_t>(b), static_cast<std::uint64_t>(p));
        return static_cast<std::int32_t>(words[0] % static_cast<std::uint32_t>(config.vocabulary));
      };
      for (std::int64_t p = 0; p < problem.tokens; ++p) {
        // Sequences count unevenly: a mean per rank, instead of a global one, would show. The last
        // token of a document has no next one.
        const bool counts = p >= b % 7 && !(documents && (p + 1) % kDocumentTokens == 0);
        batch.inputs.push_back(token(p));
        batch.targets.push_back(counts ? token(p + 1) : -1);
        if (documents) batch.documents.push_back(static_cast<std::int32_t>(p / kDocumentTokens));
        batch.valid += counts;
      }
    }
  }
  return problem;
}

bool TrainingOutcome::operator==(const TrainingOutcome& other) const {
  return learned_the_same(*this, other) && same_bits(gradient_norms, other.gradient_norms) &&
         same_bits(first_gradients, other.first_gradients);
}

bool learned_the_same(const TrainingOutcome& outcome, const TrainingOutcome& expected) {
  return same_bits(outcome.losses, expected.losses) && same_bits(outcome.weights, expected.weights);
}

TrainingOutcome run_training(const TrainingProblem& problem, const Mesh& mesh, Keep keep,
                             ProcessGroup& gradients, Backend backend, ProcessGroup* tensor,
                             const MakeGroup& make_group) {
  const auto context = mesh.shape().context > 1 ? make_group(mesh.context()) : nullptr;
  const int tensor_ranks = mesh.shape().tensor;
  const auto own_tensor =
      tensor == nullptr && tensor_ranks > 1 ? make_group(mesh.tensor()) : nullptr;
  if (tensor == nullptr) tensor = own_tensor.get();
  MemoryConfig memory;
  memory.keep = keep;
  SequenceShards shards =
      shard_sequence(problem.tokens, problem.layout, context.get(), tensor_ranks);
  ModelConfig heads = problem.config;  // of this rank
  heads.heads /= tensor_ranks,
      heads.kv_heads = std::max<std::int64_t>(1, heads.kv_heads / tensor_ranks);
  for (const VerifiedScheme& scheme : verified_schemes())
    if (scheme.kind == problem.attention.scheme)
      shards = split_for(scheme, heads, std::move(shards), mesh.context(), make_group);
  Transformer model(problem.config, problem.attention, memory, std::move(shards), backend, {},
                    problem.shard, shard_weights(tensor));
  OptimizerConfig settings;
  settings.learning_rate = 3e-3;
  // Small buckets, so that there is more than one.
  ParameterSharding sharding(problem.shard, model.parameters(), gradients, mesh.replicas(), backend,
                             4096);
  sharding.initialize(kKey);
  AdamW optimizer(model.parameters(), sharding, settings, backend);

  // The tokens of this rank in the sequences [first, first + count), then forward and backward.
  const auto micro_batch = [&](const TrainingProblem::Batch& from, std::int64_t first,
                               std::int64_t count, std::uint64_t step, bool last) {
    std::vector<std::int32_t> inputs, targets, documents;
    std::vector<std::int64_t> numbers;
    for (std::int64_t b = first; b < first + count; ++b) {
      numbers.push_back(b);
      for (const std::int32_t p : model.shards().mine()) {
        const auto at = static_cast<std::size_t>(b * problem.tokens + std::max(p, 0));
        inputs.push_back(p < 0 ? 0 : from.inputs[at]);
        targets.push_back(p < 0 ? -1 : from.targets[at]);
        if (problem.documents) documents.push_back(p < 0 ? 0 : from.documents[at]);
      }
    }
    const auto view = [](const std::vector<std::int32_t>& x) {
      return View<const std::int32_t>(x.data(), static_cast<std::int64_t>(x.size()));
    };
    MicroBatch batch;
    batch.sequences = count;
    batch.inputs_BT = view(inputs), batch.targets_BT = view(targets);
    batch.documents_BT = view(documents);
    batch.sequence_numbers_B = {numbers.data(), count};
    batch.dropout_key = derive_key(kKey, step);
    sharding.begin_micro_batch(last);
    return model.train(batch, 1.0f / static_cast<float>(from.valid));
  };

  const auto gradient_norm = [&] {
    if (tensor_ranks == 1) return optimizer.gradient_norm();
    return std::sqrt(mesh.tensor().all_reduce_sum(sharding.sum_over_owners(
        sum_of_squares_once(model.parameters(), sharding.owned(), model.tensor(), backend))));
  };
  TrainingOutcome outcome;
  const auto begin_of = [&](int index) {
    return part_begin(problem.sequences, index, mesh.shape().data);
  };
  const std::int64_t begin = begin_of(mesh.data_index()), end = begin_of(mesh.data_index() + 1);
  for (std::int64_t step = 1; step <= problem.steps; ++step) {
    const auto& batch = problem.batches[static_cast<std::size_t>(step) % problem.batches.size()];
    const auto key = static_cast<std::uint64_t>(step);
    double sum = 0;
    for (int i = 0; i < problem.micro_batches; ++i) {
      const std::int64_t first = begin + part_begin(end - begin, i, problem.micro_batches),
                         after = begin + part_begin(end - begin, i + 1, problem.micro_batches);
      sum += micro_batch(batch, first, after - first, key, i + 1 == problem.micro_batches);
    }
    sharding.finish_gradients();
    sum_replicated_gradients(model.parameters(), sharding.owned(), model.tensor(), backend);
    outcome.losses.push_back(mesh.world().all_reduce_sum(sum) / static_cast<double>(batch.valid));
    if (step == 1)
      outcome.first_gradients = put_together(model.parameters(), sharding.owned(),
                                             &OwnedRange::gradient, backend, mesh.world());
    outcome.gradient_norms.push_back(gradient_norm());
    optimizer.update(settings.learning_rate, outcome.gradient_norms.back(), step);
  }
  sharding.wait_for_weights();
  outcome.weights = put_together(model.parameters(), sharding.owned(), &OwnedRange::weight, backend,
                                 mesh.world());
  return outcome;
}

double loss_difference(const TrainingOutcome& outcome, const TrainingOutcome& expected) {
  if (outcome.losses.size() != expected.losses.size()) return kInfinity;
  double largest = 0;
  for (std::size_t i = 0; i < expected.losses.size(); ++i) {
    const double difference = std::abs(outcome.losses[i] / expected.losses[i] - 1);
    largest = std::isnan(difference) ? kInfinity : std::max(largest, difference);
  }
  return largest;
}

double gradient_difference(const TrainingOutcome& outcome, const TrainingOutcome& expected) {
  const std::vector<double> wide(expected.first_gradients.begin(), expected.first_gradients.end());
  return relative_error(outcome.first_gradients, wide);
}

std::vector<TrainingRow> measure_training(const Communicator& world, const VerifyScope& scope,
                                          const Compute& compute) {
  const Backend backend = compute.backend;
  const auto everybody = [&](bool mine) { return world.all_reduce_min(std::int64_t{mine}) == 1; };
  std::map<std::string, TrainingOutcome> one_rank;  // rank 0's alone
  // This rank's: with memory.keep=all; and a few steps of one micro-batch with nothing sharded.
  std::map<std::tuple<std::string, OptimizerShard, std::string>, TrainingOutcome> keep_all;
  std::map<std::tuple<std::string, Keep, std::string>, TrainingOutcome> unsharded;
  std::vector<TrainingRow> rows;
  for (const TrainingCase& what : training_cases(world.size(), scope)) {
    const TrainingLayout& layout = what.layout;
    TrainingProblem problem = training_problem(what.model, world.size());
    problem.steps = scope.steps;
    if (!layout.scheme.empty()) problem.attention.scheme = verified_scheme(layout.scheme).kind;
    problem.shard = layout.shard;
    const Mesh mesh(world, {layout.data, layout.context, layout.tensor});
    const auto gradients = compute.make_group(mesh.replicas());
    const auto run = [&](Keep keep) {
      return run_training(problem, mesh, keep, *gradients, backend, nullptr, compute.make_group);
    };
    TrainingOutcome& all = keep_all[{to_string(layout), layout.shard, what.model}];
    if (all.losses.empty()) all = run(Keep::kAll);
    const TrainingOutcome outcome = what.keep == Keep::kAll ? all : run(what.keep);
    TrainingRow row = {what, 0, 0, everybody(outcome == all), everybody(run(what.keep) == outcome)};
    if (layout.shard != OptimizerShard::kNone) {
      problem.steps = std::min<std::int64_t>(4, scope.steps), problem.micro_batches = 1;
      const TrainingOutcome sharded = run(what.keep);
      problem.shard = OptimizerShard::kNone;
      TrainingOutcome& whole = unsharded[{to_string(layout), what.keep, what.model}];
      if (whole.losses.empty()) whole = run(what.keep);
      row.same_as_unsharded = everybody(learned_the_same(sharded, whole));
    }
    if (world.rank() != 0) continue;
    TrainingOutcome& expected = one_rank[what.model];
    if (expected.losses.empty()) {
      const Mesh alone(Communicator::self(), {1, 1});
      TrainingProblem whole = training_problem(what.model, world.size());
      whole.steps = scope.steps;
      expected =
          run_training(whole, alone, Keep::kAll, *compute.make_group(alone.world()), backend);
    }
    row.loss_difference = loss_difference(outcome, expected);
    row.gradient_difference = gradient_difference(outcome, expected);
    rows.push_back(row);
  }
  return rows;
}

}  // namespace longspan::launcher
