#include "launcher/verify_training.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <tuple>
#include <utility>

#include "model/adamw.hpp"
#include "model/oracle.hpp"
#include "parallel/data_parallel.hpp"
#include "parallel/random.hpp"

namespace longspan::launcher {
namespace {

using namespace model;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::uint64_t kKey = 0x76657269;

}  // namespace

TrainingProblem training_problem(const std::string& model, int ranks) {
  const bool gpt2 = model == "gpt2", documents = model == "llama" || model == "llama-bf16";
  TrainingProblem problem;
  problem.sequences = std::max(12, ranks);
  problem.documents = documents;
  ModelConfig& config = problem.config;
  config.layers = 2, config.width = 32, config.heads = 4, config.head_size = 8;
  config.kv_heads = gpt2 ? 4 : 2;
  config.mlp_width = 48, config.vocabulary = 50, config.max_positions = problem.tokens;
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
  const auto same = [](const auto& a, const auto& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
  };
  return same(losses, other.losses) && same(gradient_norms, other.gradient_norms) &&
         same(first_gradients, other.first_gradients) && same(weights, other.weights);
}

TrainingOutcome run_training(const TrainingProblem& problem, const Mesh& mesh, Keep keep,
                             ProcessGroup& gradients, Backend backend) {
  const auto context = mesh.shape().context > 1 ? make_mpi_group(mesh.context()) : nullptr;
  MemoryConfig memory;
  memory.keep = keep;
  SequenceShards shards = shard_sequence(problem.tokens, problem.layout, context.get());
  for (const VerifiedScheme& scheme : verified_schemes())
    if (scheme.kind == problem.attention.scheme)
      shards = split_for(scheme, problem.config, std::move(shards), mesh.context());
  Transformer model(problem.config, problem.attention, memory, std::move(shards), backend);
  model.parameters().initialize(kKey);
  OptimizerConfig settings;
  settings.learning_rate = 3e-3;
  AdamW optimizer(model.parameters(), settings, backend);
  // Small buckets, so that there is more than one.
  GradientReducer reducer(gradients, model.parameters().gradients(), 4096);

  // The tokens of this rank in the sequences [first, first + count), then forward and backward.
  const auto micro_batch = [&](const TrainingProblem::Batch& from, std::int64_t first,
                               std::int64_t count, std::uint64_t step,
                               const Transformer::GradientsReady& ready) {
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
    return model.train(batch, 1.0f / static_cast<float>(from.valid), ready);
  };

  TrainingOutcome outcome;
  const auto begin_of = [&](int index) {
    return part_begin(problem.sequences, index, mesh.shape().data);
  };
  const std::int64_t begin = begin_of(mesh.data_index()), end = begin_of(mesh.data_index() + 1);
  for (std::int64_t step = 1; step <= problem.steps; ++step) {
    const auto& batch = problem.batches[static_cast<std::size_t>(step) % problem.batches.size()];
    const auto key = static_cast<std::uint64_t>(step);
    const std::int64_t middle = begin + (end - begin) / 2;
    double sum = 0;
    if (middle > begin) sum += micro_batch(batch, begin, middle - begin, key, nullptr);
    sum += micro_batch(batch, middle, end - middle, key,
                       [&](std::int64_t from) { reducer.ready_from(from); });
    reducer.finish();
    outcome.losses.push_back(mesh.world().all_reduce_sum(sum) / static_cast<double>(batch.valid));
    const View<float> sums = model.parameters().gradients();
    if (step == 1) outcome.first_gradients.assign(sums.begin(), sums.end());
    outcome.gradient_norms.push_back(optimizer.gradient_norm());
    optimizer.update(settings.learning_rate, outcome.gradient_norms.back(), step);
  }
  const View<float> weights = model.parameters().weights();
  outcome.weights.assign(weights.begin(), weights.end());
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

std::vector<TrainingRow> measure_training(const Communicator& world, const VerifyScope& scope) {
  const Backend backend = cpu_backend();
  const auto everybody = [&](bool mine) { return world.all_reduce_min(std::int64_t{mine}) == 1; };
  std::map<std::string, TrainingOutcome> one_rank;                          // rank 0's alone
  std::map<std::pair<std::string, std::string>, TrainingOutcome> keep_all;  // this rank's
  const auto gradients = make_mpi_group(world);
  std::vector<TrainingRow> rows;
  for (const TrainingCase& what : training_cases(world.size(), scope)) {
    TrainingProblem problem = training_problem(what.model, world.size());
    if (!what.layout.scheme.empty())
      problem.attention.scheme = verified_scheme(what.layout.scheme).kind;
    const Mesh mesh(world, {what.layout.data, what.layout.context});
    const auto run = [&](Keep keep) {
      return run_training(problem, mesh, keep, *gradients, backend);
    };
    TrainingOutcome& all = keep_all[{to_string(what.layout), what.model}];
    if (all.losses.empty()) all = run(Keep::kAll);
    const TrainingOutcome outcome = what.keep == Keep::kAll ? all : run(what.keep);
    const bool same_as_keep_all = everybody(outcome == all);
    const bool same_again = everybody(run(what.keep) == outcome);
    if (world.rank() != 0) continue;
    TrainingOutcome& expected = one_rank[what.model];
    if (expected.losses.empty()) {
      const Mesh alone(Communicator::self(), {1, 1});
      expected = run_training(problem, alone, Keep::kAll, *make_mpi_group(alone.world()), backend);
    }
    rows.push_back({what, loss_difference(outcome, expected),
                    gradient_difference(outcome, expected), same_as_keep_all, same_again});
  }
  return rows;
}

}  // namespace longspan::launcher
