#include "launcher/verify_cases.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <tuple>

#include "model/adamw.hpp"
#include "model/attention.hpp"
#include "parallel/data_parallel.hpp"
#include "parallel/random.hpp"

namespace longspan::launcher {
namespace {

using namespace model;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::uint64_t kKey = 0x76657269;

/// The schemes of attention that exist; one more here is one more block of rows.
const std::vector<std::string>& schemes() {
  static const std::vector<std::string> all = {"ring"};
  return all;
}

std::int64_t count_of(const std::vector<float>& x) {
  return static_cast<std::int64_t>(x.size());
}

std::vector<float> normals(std::int64_t count, std::uint64_t key, float deviation) {
  std::vector<float> x;
  for (std::int64_t i = 0; i < count; ++i)
    x.push_back(deviation * normal_at(key, static_cast<std::uint64_t>(i)));
  return x;
}

/// Where the rows of a token lie: sequence b, global position p.
struct Layout {
  std::int64_t sequences, tokens;
  /// Calls visit(row of the shard, row of the whole problem or -1 for padding).
  template <class Visit>
  void each_row(const std::vector<std::int32_t>& positions, Visit&& visit) const {
    std::int64_t row = 0;
    for (std::int64_t b = 0; b < sequences; ++b)
      for (const std::int32_t p : positions) visit(row++, p < 0 ? -1 : b * tokens + p);
  }
};

}  // namespace

std::string_view name_of(MaskCase mask) {
  switch (mask) {
    case MaskCase::kCausal:
      return "causal";
    case MaskCase::kFull:
      return "full";
    case MaskCase::kWindow:
      return "window";
    case MaskCase::kDocuments:
      return "documents";
  }
  return "";
}

std::string_view name_of(Keep keep) {
  switch (keep) {
    case Keep::kAll:
      return "all";
    case Keep::kAttention:
      return "attention";
    case Keep::kBlock:
      return "block";
  }
  return "";
}

std::vector<AttentionCase> attention_cases(int ranks, const VerifyScope& scope) {
  using enum MaskCase;
  std::vector<AttentionCase> cases;
  for (const std::string& scheme : schemes())
    for (const SequenceLayout layout : {SequenceLayout::kZigzag, SequenceLayout::kContiguous}) {
      // One rank has the whole sequence in order, whatever the layout.
      if (ranks == 1 && layout == SequenceLayout::kZigzag) continue;
      for (const MaskCase mask : {kCausal, kFull, kWindow, kDocuments})
        for (const bool grouped : {false, true}) {
          const bool typical = grouped && (mask == kCausal || mask == kDocuments);
          if (!scope.quick || typical)
            cases.push_back({ranks, scheme, layout, mask, grouped, scope.tokens});
        }
      // So short that the last of these ranks holds nothing but padding.
      if (ranks > 2 && layout == SequenceLayout::kContiguous && !scope.quick)
        for (const MaskCase mask : {kCausal, kFull})
          cases.push_back(
              {ranks, scheme, layout, mask, true, std::int64_t{ranks - 1} * (ranks - 1)});
    }
  return cases;
}

std::vector<TrainingCase> training_cases(int ranks, const VerifyScope& scope) {
  std::vector<TrainingCase> cases;
  for (int context = 1; context <= ranks; ++context) {
    if (ranks % context != 0) continue;
    for (const char* model : {"gpt2", "llama"})
      for (const Keep keep : {Keep::kAll, Keep::kAttention, Keep::kBlock})
        if (!scope.quick || keep == Keep::kAttention)
          cases.push_back({ranks / context, context, keep, model});
  }
  return cases;
}

AttentionProblem attention_problem(MaskCase mask, bool grouped, std::int64_t tokens) {
  AttentionProblem problem;
  ModelConfig& config = problem.config;
  config.heads = 4, config.kv_heads = grouped ? 2 : 4, config.head_size = 16;
  config.width = config.heads * config.head_size;
  problem.tokens = tokens;
  if (mask == MaskCase::kFull) problem.attention.mask = MaskKind::kFull;
  // Both reach over the borders of the ranks' chunks, and end at none of them.
  if (mask == MaskCase::kWindow) problem.attention.window = tokens / 3 + 1;
  if (mask == MaskCase::kDocuments)
    for (std::int64_t b = 0; b < problem.sequences; ++b)
      for (std::int64_t p = 0; p < tokens; ++p)
        problem.documents.push_back(static_cast<std::int32_t>((p + 11 * b) / (tokens / 4 + 3)));
  const std::int64_t rows = problem.sequences * tokens;
  const std::int64_t width = config.width, kv_width = config.kv_heads * config.head_size;
  problem.q = normals(rows * width, kKey, 1.5f);
  problem.k = normals(rows * kv_width, kKey + 1, 1.5f);
  problem.v = normals(rows * kv_width, kKey + 2, 1.0f);
  problem.dout = normals(rows * width, kKey + 3, 1.0f);
  return problem;
}

OracleOutputs attention_truth(const AttentionProblem& problem) {
  const auto positions = sequence_positions(problem.tokens, 0, 1, SequenceLayout::kContiguous);
  AttentionShape shape;
  shape.batch = problem.sequences;
  shape.queries = shape.keys = problem.tokens;
  shape.heads = problem.config.heads, shape.kv_heads = problem.config.kv_heads;
  shape.head_size = problem.config.head_size;
  shape.query_positions = shape.key_positions = positions.data();
  if (!problem.documents.empty())
    shape.query_documents = shape.key_documents = problem.documents.data();
  shape.mask = {problem.attention.mask == MaskKind::kCausal, problem.attention.window};
  shape.scale = 1.0f / std::sqrt(static_cast<float>(problem.config.head_size));
  return attention_oracle(shape, {problem.q, problem.k, problem.v, problem.dout});
}

AttentionResult run_attention(const AttentionProblem& problem, SequenceLayout layout,
                              ProcessGroup* group, Backend backend) {
  // Large numbers in the rows of padding: whoever looks at them shows it.
  constexpr float kPoison = 1e3f;
  const SequenceShards shards = shard_sequence(problem.tokens, layout, group);
  const Layout rows_of{problem.sequences, problem.tokens};
  const std::int64_t heads = problem.config.heads, tokens = shards.tokens();
  const std::int64_t rows = problem.sequences * tokens, width = problem.config.width;
  const std::int64_t kv_width = problem.config.kv_heads * problem.config.head_size;

  // This rank's share.
  Buffer<float> qkv(backend.device, rows, width + 2 * kv_width), dout(backend.device, rows, width);
  rows_of.each_row(shards.mine(), [&](std::int64_t row, std::int64_t from) {
    float* const packed = qkv.view().row(row);
    if (from < 0) {
      std::fill_n(packed, qkv.cols(), kPoison);
      std::fill_n(dout.view().row(row), width, kPoison);
      return;
    }
    std::copy_n(&problem.q[from * width], width, packed);
    std::copy_n(&problem.k[from * kv_width], kv_width, packed + width);
    std::copy_n(&problem.v[from * kv_width], kv_width, packed + width + kv_width);
    std::copy_n(&problem.dout[from * width], width, dout.view().row(row));
  });
  MicroBatch batch;
  batch.sequences = problem.sequences;
  PassContext pass{shards, batch, false, {}};
  if (!problem.documents.empty())
    for (const auto& positions : shards.positions)
      rows_of.each_row(positions, [&, &mine = pass.documents.emplace_back()](auto, auto from) {
        mine.push_back(from < 0 ? 0 : problem.documents[from]);
      });

  const Attention attention(problem.config, problem.attention, backend);
  Attention::Saved saved;
  Buffer<float> dqkv(backend.device, qkv.rows(), qkv.cols());
  attention.forward(qkv, saved, pass);
  attention.backward(dout, qkv, saved, dqkv, pass);

  // Everybody's shares, one after the other, and from them whole sequences.
  std::vector<float> mine;
  for (const View<float> part : {saved.output_NHK.view(), saved.lse.view(), dqkv.view()})
    mine.insert(mine.end(), part.begin(), part.end());
  std::vector<float> all(mine.size() * static_cast<std::size_t>(shards.ranks()));
  if (shards.ranks() == 1)
    all = mine;
  else
    group->all_gather({mine.data(), count_of(mine)}, {all.data(), count_of(all)})->wait();

  AttentionResult result;
  result.output = result.dq = std::vector<float>(problem.q.size());
  result.dk = result.dv = std::vector<float>(problem.k.size());
  result.lse.resize(static_cast<std::size_t>(problem.sequences * heads * problem.tokens));
  for (std::size_t rank = 0; rank < shards.positions.size(); ++rank) {
    const float* const output = &all[rank * mine.size()];
    const float* const lse = output + rows * width;
    const float* const gradients = lse + rows * heads;
    rows_of.each_row(shards.positions[rank], [&](std::int64_t row, std::int64_t to) {
      const float* const o = output + row * width;
      const float* const d = gradients + row * dqkv.cols();
      const std::int64_t b = row / tokens;
      const auto lse_at = [&](std::int64_t h) {
        return lse[(b * heads + h) * tokens + row % tokens];
      };
      if (to < 0) {
        const auto zero = [](float x) { return x == 0; };
        bool silent = std::all_of(o, o + width, zero) && std::all_of(d, d + dqkv.cols(), zero);
        for (std::int64_t h = 0; h < heads; ++h) silent = silent && lse_at(h) == -kInfinity;
        result.padding_is_silent = result.padding_is_silent && silent;
        return;
      }
      std::copy_n(o, width, &result.output[to * width]);
      std::copy_n(d, width, &result.dq[to * width]);
      std::copy_n(d + width, kv_width, &result.dk[to * kv_width]);
      std::copy_n(d + width + kv_width, kv_width, &result.dv[to * kv_width]);
      for (std::int64_t h = 0; h < heads; ++h)
        result.lse[(b * heads + h) * problem.tokens + to % problem.tokens] = lse_at(h);
    });
  }
  return result;
}

AttentionErrors compare(const AttentionResult& result, const OracleOutputs& truth) {
  AttentionErrors errors;
  errors.output = relative_error(result.output, truth.output);
  errors.dq = relative_error(result.dq, truth.dq);
  errors.dk = relative_error(result.dk, truth.dk);
  errors.dv = relative_error(result.dv, truth.dv);
  errors.lse = largest_error(result.lse, truth.lse);
  errors.padding_is_silent = result.padding_is_silent;
  return errors;
}

TrainingProblem training_problem(const std::string& model, int ranks) {
  const bool llama = model == "llama";
  TrainingProblem problem;
  problem.sequences = std::max(12, ranks);
  problem.documents = llama;
  ModelConfig& config = problem.config;
  config.layers = 2, config.width = 32, config.heads = 4, config.head_size = 8;
  config.kv_heads = llama ? 2 : 4;
  config.mlp_width = 48, config.vocabulary = 50, config.max_positions = problem.tokens;
  if (llama) {
    config.tie_embeddings = false;
  } else {
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
        const bool counts = p >= b % 7 && !(llama && (p + 1) % kDocumentTokens == 0);
        batch.inputs.push_back(token(p));
        batch.targets.push_back(counts ? token(p + 1) : -1);
        if (llama) batch.documents.push_back(static_cast<std::int32_t>(p / kDocumentTokens));
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
  return same(losses, other.losses) && same(weights, other.weights);
}

TrainingOutcome run_training(const TrainingProblem& problem, const Mesh& mesh, Keep keep,
                             ProcessGroup& gradients, Backend backend) {
  const auto context = mesh.shape().context > 1 ? make_mpi_group(mesh.context()) : nullptr;
  MemoryConfig memory;
  memory.keep = keep;
  Transformer model(problem.config, {}, memory,
                    shard_sequence(problem.tokens, SequenceLayout::kZigzag, context.get()),
                    backend);
  OptimizerConfig settings;
  settings.learning_rate = 3e-3;
  // Small buckets, so that there is more than one.
  ParameterSharding sharding(settings.shard, model.parameters(), gradients, mesh.world(), backend,
                             4096);
  sharding.initialize(kKey);
  AdamW optimizer(model.parameters(), sharding, settings, backend);

  // The tokens of this rank in the sequences [first, first + count), then forward and backward.
  const auto micro_batch = [&](const TrainingProblem::Batch& from, std::int64_t first,
                               std::int64_t count, std::uint64_t step, bool last) {
    std::vector<std::int32_t> inputs, targets, documents;
    std::vector<std::int64_t> numbers;
    for (std::int64_t b = first; b < first + count; ++b) numbers.push_back(b);
    Layout{count, problem.tokens}.each_row(model.shards().mine(), [&](auto, std::int64_t row) {
      const std::size_t at = static_cast<std::size_t>(first * problem.tokens + row);
      inputs.push_back(row < 0 ? 0 : from.inputs[at]);
      targets.push_back(row < 0 ? -1 : from.targets[at]);
      if (problem.documents) documents.push_back(row < 0 ? 0 : from.documents[at]);
    });
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
    if (middle > begin) sum += micro_batch(batch, begin, middle - begin, key, false);
    sum += micro_batch(batch, middle, end - middle, key, true);
    sharding.finish_gradients();
    outcome.losses.push_back(mesh.world().all_reduce_sum(sum) / static_cast<double>(batch.valid));
    optimizer.update(settings.learning_rate, optimizer.gradient_norm(), step);
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

std::vector<AttentionRow> measure_attention(const Communicator& world, const VerifyScope& scope) {
  struct Reference {
    OracleOutputs truth;
    AttentionErrors one_rank;
  };
  std::map<std::tuple<MaskCase, bool, std::int64_t>, Reference> references;  // rank 0's alone
  const Backend backend = cpu_backend();
  const auto group = world.size() > 1 ? make_mpi_group(world) : nullptr;
  std::vector<AttentionRow> rows;
  for (const AttentionCase& what : attention_cases(world.size(), scope)) {
    const AttentionProblem problem = attention_problem(what.mask, what.grouped, what.tokens);
    const AttentionResult result = run_attention(problem, what.layout, group.get(), backend);
    if (world.rank() != 0) continue;
    Reference& reference = references[{what.mask, what.grouped, what.tokens}];
    if (reference.truth.output.empty()) {
      reference.truth = attention_truth(problem);
      const auto alone = run_attention(problem, SequenceLayout::kContiguous, nullptr, backend);
      reference.one_rank = compare(alone, reference.truth);
    }
    rows.push_back({what, compare(result, reference.truth), reference.one_rank});
  }
  return rows;
}

std::vector<TrainingRow> measure_training(const Communicator& world, const VerifyScope& scope) {
  const Backend backend = cpu_backend();
  const auto everybody = [&](bool mine) { return world.all_reduce_min(std::int64_t{mine}) == 1; };
  std::map<std::string, TrainingOutcome> one_rank;                        // rank 0's alone
  std::map<std::tuple<int, int, std::string>, TrainingOutcome> keep_all;  // this rank's
  const auto gradients = make_mpi_group(world);
  std::vector<TrainingRow> rows;
  for (const TrainingCase& what : training_cases(world.size(), scope)) {
    const TrainingProblem problem = training_problem(what.model, world.size());
    const Mesh mesh(world, {what.data, what.context});
    const auto run = [&](Keep keep) {
      return run_training(problem, mesh, keep, *gradients, backend);
    };
    TrainingOutcome& all = keep_all[{what.data, what.context, what.model}];
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
    rows.push_back({what, loss_difference(outcome, expected), same_as_keep_all, same_again});
  }
  return rows;
}

}  // namespace longspan::launcher
