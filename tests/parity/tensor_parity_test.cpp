// label: slow
// ranks: 2 4
// timeout: 120
/// Sharing the weights must not change the answer: losses, gradients and logits of meshes with a
/// tensor axis against one rank; the same bits twice and with every memory.keep; the bytes of
/// parallel/tensor_parallel.hpp.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "model/adamw.hpp"
#include "model/flops.hpp"
#include "model/replicated_gradients.hpp"
#include "parallel/data_parallel.hpp"
#include "parallel/mesh.hpp"
#include "support/ranks.hpp"
#include "support/tiny_model.hpp"

namespace longspan {
namespace {

using namespace model;
using testing_support::TinyBatch;
using testing_support::Variant;

constexpr std::int64_t kLength = 29;  // divides by nothing: padded to the tensor ranks
constexpr std::int64_t kSequences = 4;
constexpr int kSteps = 20;

/// The variants of tiny_model.hpp: key/value heads 4, 2 and 1, tied and not, every kind of layer,
/// dropout, packed documents.
std::vector<Variant> variants() {
  auto all = testing_support::variants();
  for (Variant& v : all) v.config.vocabulary = 52;  // a multiple of 2 and 4
  return all;
}

/// A model of one rank of a mesh, with its groups.
struct Sharded {
  const Mesh& mesh;
  std::unique_ptr<ProcessGroup> context, tensor, replicas;
  Transformer model;
  ParameterSharding sharding;

  Sharded(const Variant& v, const Mesh& m, Keep keep, OptimizerShard shard = OptimizerShard::kNone)
      : mesh(m),
        context(m.shape().context > 1 ? make_mpi_group(m.context()) : nullptr),
        tensor(m.shape().tensor > 1 ? make_mpi_group(m.tensor()) : nullptr),
        replicas(make_mpi_group(m.replicas())),
        model(v.config, v.attention, memory_of(keep), shards_of(v, m, context.get()), cpu_backend(),
              {}, shard, shard_weights(tensor.get())),
        sharding(shard, model.parameters(), *replicas, m.replicas(), cpu_backend(), 4096) {
    sharding.initialize(11);
  }
  static MemoryConfig memory_of(Keep keep) {
    MemoryConfig memory;
    memory.keep = keep;
    memory.loss_chunk = 12;  // several chunks, and a last one that is shorter
    return memory;
  }
  static SequenceShards shards_of(const Variant& v, const Mesh& m, ProcessGroup* context) {
    const bool causal = v.attention.mask == MaskKind::kCausal;
    SequenceShards shards =
        shard_sequence(kLength, layout_for(causal, v.attention.window), context, m.shape().tensor);
    if (v.attention.scheme == AttentionSchemeKind::kHybrid) split_context(shards, m.context(), 2);
    return shards;
  }
  double gradient_norm() const {
    return std::sqrt(mesh.tensor().all_reduce_sum(sharding.sum_over_owners(
        sum_of_squares_once(model.parameters(), sharding.owned(), model.tensor(), cpu_backend()))));
  }
};

struct Outcome {
  std::vector<double> losses, norms;
  std::vector<float> first_gradients, weights;  ///< flat, of this rank
  std::vector<Parameter> parameters;
};

Outcome train(const Variant& v, const Mesh& mesh, Keep keep, int steps = kSteps,
              OptimizerShard shard = OptimizerShard::kNone) {
  Sharded rank(v, mesh, keep, shard);
  Transformer& model = rank.model;
  OptimizerConfig settings;
  settings.learning_rate = 3e-3;
  AdamW optimizer(model.parameters(), rank.sharding, settings, cpu_backend());
  Outcome outcome;
  outcome.parameters = model.parameters().parameters();
  const std::int64_t share = kSequences / mesh.shape().data;
  for (int step = 1; step <= steps; ++step) {
    TinyBatch data(kSequences, kLength, v.config.vocabulary, static_cast<std::uint64_t>(step % 3),
                   v.documents);
    rank.sharding.begin_micro_batch(true);
    const double sum =
        model.train(data.slice(mesh.data_index() * share, share, model.shards().mine()),
                    1.0f / static_cast<float>(data.valid_targets()));
    rank.sharding.finish_gradients();
    sum_replicated_gradients(model.parameters(), rank.sharding.owned(), model.tensor(),
                             cpu_backend());
    if (step == 1 && rank.sharding.whole()) {
      const View<float> g = model.parameters().gradients();
      outcome.first_gradients.assign(g.begin(), g.end());
    }
    outcome.losses.push_back(mesh.world().all_reduce_sum(sum) /
                             static_cast<double>(data.valid_targets()));
    outcome.norms.push_back(rank.gradient_norm());
    optimizer.update(settings.learning_rate, outcome.norms.back(), step);
  }
  for (const OwnedRange& mine : rank.sharding.owned())
    outcome.weights.insert(outcome.weights.end(), mine.weight, mine.weight + mine.range.count);
  return outcome;
}

std::vector<MeshShape> meshes_of(int ranks) {
  if (ranks == 2) return {{1, 1, 2}};
  return {{2, 1, 2}, {1, 2, 2}, {1, 1, 4}};
}

/// The largest relative difference of a parameter's block on this rank from the same block of whole
/// tensors, in the L2 norm; a whole gradient that is (nearly) zero has nothing to compare.
double worst_block(const Outcome& sharded, const std::vector<float>& mine, const Outcome& whole,
                   const std::vector<float>& all) {
  double worst = 0;
  for (std::size_t i = 0; i < whole.parameters.size(); ++i) {
    const Parameter &p = sharded.parameters[i], &w = whole.parameters[i];
    if (p.name != w.name || p.global_shape != w.shape) return INFINITY;
    const std::int64_t columns = p.shape.back(), all_columns = w.shape.back();
    const std::int64_t first_row = p.shape.size() > 1 ? p.block_offset.front() : 0;
    double difference = 0, norm = 0;
    for (std::int64_t e = 0; e < p.count(); ++e) {
      const std::int64_t at =
          (first_row + e / columns) * all_columns + p.block_offset.back() + e % columns;
      const double expected = all[static_cast<std::size_t>(w.offset + at)];
      difference += std::pow(mine[static_cast<std::size_t>(p.offset + e)] - expected, 2);
      norm += expected * expected;
    }
    // A key bias moves no softmax: its gradient is nothing but rounding.
    if (norm > 1e-12) worst = std::max(worst, std::sqrt(difference / norm));
  }
  return worst;
}

struct SchemeCase {
  const char* name;
  AttentionSchemeKind scheme;
  Keep keep;
  int steps;
};
std::vector<SchemeCase> schemes_of(const MeshShape& shape) {
  const SchemeCase ring = {"ring", AttentionSchemeKind::kRing, Keep::kAttention, kSteps};
  if (shape.context == 1) return {ring};
  return {ring,
          {"allgather", AttentionSchemeKind::kAllgather, Keep::kBlock, 4},
          {"ulysses", AttentionSchemeKind::kUlysses, Keep::kAttention, 4},
          {"hybrid", AttentionSchemeKind::kHybrid, Keep::kAttention, 4}};
}

TEST(TensorParity, EveryMeshLearnsLikeOneRank) {
  const auto world = Communicator::world();
  const Mesh alone(Communicator::self(), {1, 1, 1});
  for (Variant v : variants()) {
    const Outcome expected = train(v, alone, Keep::kAll);
    EXPECT_LT(expected.losses.back(), expected.losses.front());
    for (const MeshShape& shape : meshes_of(world.size())) {
      const Mesh mesh(world, shape);
      for (const SchemeCase& c : schemes_of(shape)) {
        v.attention.scheme = c.scheme;
        SCOPED_TRACE(v.name + " " + to_string(shape) + " " + c.name);
        const Outcome sharded = train(v, mesh, c.keep, c.steps);
        double losses = 0, norms = 0;
        for (std::size_t i = 0; i < sharded.losses.size(); ++i) {
          losses = std::max(losses, std::abs(sharded.losses[i] / expected.losses[i] - 1));
          norms = std::max(norms, std::abs(sharded.norms[i] / expected.norms[i] - 1));
        }
        EXPECT_ALL_RANKS(losses <= 1e-5);
        EXPECT_ALL_RANKS(norms <= 1e-5);
        EXPECT_ALL_RANKS(worst_block(sharded, sharded.first_gradients, expected,
                                     expected.first_gradients) <= 1e-5);
      }
    }
  }
}

/// Optimizer states, gradients and weights shared over the ranks with the same tensor index.
TEST(TensorParity, SharedOptimizerStatesGiveTheSameLossesAndWeights) {
  const auto world = Communicator::world();
  for (const MeshShape& shape : meshes_of(world.size())) {
    const Mesh mesh(world, shape);
    if (mesh.replicas().size() == 1) continue;
    for (const Variant& v : {variants()[0], variants()[1]}) {  // tied; two key/value heads, untied
      const Outcome whole = train(v, mesh, Keep::kAttention, 4);
      for (const OptimizerShard shard :
           {OptimizerShard::kStates, OptimizerShard::kGradients, OptimizerShard::kParameters}) {
        SCOPED_TRACE(v.name + " " + to_string(shape) + " shard " +
                     std::to_string(static_cast<int>(shard)));
        const Outcome shared = train(v, mesh, Keep::kAttention, 4, shard);
        EXPECT_ALL_RANKS(shared.losses == whole.losses);
        double norms = 0;
        for (std::size_t i = 0; i < shared.norms.size(); ++i)
          norms = std::max(norms, std::abs(shared.norms[i] / whole.norms[i] - 1));
        EXPECT_ALL_RANKS(norms <= 1e-12);
        EXPECT_ALL_RANKS(shared.weights.size() < whole.weights.size());
      }
    }
  }
}

/// Products round their operands wherever these were computed; sums are taken in another order.
TEST(TensorParity, InBfloat16LossesStayAsNearAsRoundingAllows) {
  const auto world = Communicator::world();
  const Mesh alone(Communicator::self(), {1, 1, 1});
  for (Variant v : {variants()[0], variants()[1]}) {
    const Outcome fp32 = train(v, alone, Keep::kAll);
    v.config.precision = Precision::kBf16;
    const Outcome expected = train(v, alone, Keep::kAll);
    for (const MeshShape& shape : meshes_of(world.size())) {
      const Mesh mesh(world, shape);
      SCOPED_TRACE(v.name + " " + to_string(shape));
      const Outcome all = train(v, mesh, Keep::kAll), block = train(v, mesh, Keep::kBlock);
      EXPECT_ALL_RANKS(all.losses == block.losses && all.weights == block.weights);
      double sharding = 0, rounding = 0;
      for (std::size_t i = 0; i < expected.losses.size(); ++i) {
        sharding = std::max(sharding, std::abs(all.losses[i] / expected.losses[i] - 1));
        rounding = std::max(rounding, std::abs(expected.losses[i] / fp32.losses[i] - 1));
      }
      EXPECT_ALL_RANKS(all.losses != fp32.losses);
      EXPECT_ALL_RANKS(sharding <= 2 * rounding);
    }
  }
}

TEST(TensorParity, TheLogitsAreThoseOfOneRank) {
  const auto world = Communicator::world();
  const Mesh alone(Communicator::self(), {1, 1, 1});
  for (const Variant& v : variants()) {
    Sharded whole(v, alone, Keep::kAll);
    const std::int64_t vocabulary = v.config.vocabulary;
    TinyBatch data(2, kLength, vocabulary, 5, v.documents);
    const Buffer<float> expected =
        whole.model.logits(data.slice(0, 2, whole.model.shards().mine()));
    for (const MeshShape& shape : meshes_of(world.size())) {
      const Mesh mesh(world, shape);
      Sharded rank(v, mesh, Keep::kAll);
      const auto& positions = rank.model.shards().mine();
      const Buffer<float> logits = rank.model.logits(data.slice(0, 2, positions));
      const auto tokens = static_cast<std::int64_t>(positions.size());
      double difference = 0, norm = 0;
      for (std::int64_t row = 0; row < 2 * tokens; ++row) {
        const std::int64_t p = positions[static_cast<std::size_t>(row % tokens)];
        if (p < 0) continue;
        for (std::int64_t i = 0; i < vocabulary; ++i) {
          const double truth = expected.view().row(row / tokens * kLength + p)[i];
          difference += std::pow(logits.view().row(row)[i] - truth, 2);
          norm += truth * truth;
        }
      }
      SCOPED_TRACE(v.name + " " + to_string(shape));
      EXPECT_ALL_RANKS(norm > 0 && std::sqrt(difference / norm) <= 2e-6);
    }
  }
}

TEST(TensorParity, TheSameMeshTwiceAndEveryKeepModeAreBitForBitEqual) {
  const auto world = Communicator::world();
  const Variant v = variants()[4];  // with dropout
  for (const MeshShape& shape : meshes_of(world.size())) {
    const Mesh mesh(world, shape);
    SCOPED_TRACE(to_string(shape));
    const Outcome first = train(v, mesh, Keep::kAll, 4);
    for (const Keep keep : {Keep::kAll, Keep::kAttention, Keep::kBlock}) {
      const Outcome second = train(v, mesh, keep, 4);
      EXPECT_ALL_RANKS(std::memcmp(first.weights.data(), second.weights.data(),
                                   first.weights.size() * sizeof(float)) == 0);
      EXPECT_ALL_RANKS(first.losses == second.losses);
    }
  }
}

TEST(TensorParity, RanksThatHoldTheSameBlockKeepTheSameBits) {
  const auto world = Communicator::world();
  Variant v = variants()[1];  // two key/value heads
  v.config.norm = NormKind::kLayerNorm, v.config.bias = true;
  const Mesh mesh(world, {1, 1, world.size()});
  const Outcome outcome = train(v, mesh, Keep::kAll, 4);
  int held_by_several = 0;
  for (const Parameter& p : outcome.parameters) {
    std::uint64_t digest = 0;
    for (std::int64_t i = 0; i < p.count(); ++i) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, &outcome.weights[static_cast<std::size_t>(p.offset + i)], sizeof bits);
      digest = digest * 1099511628211u + bits;
    }
    const auto all = world.all_gather(static_cast<std::int64_t>(digest >> 1));
    held_by_several += p.replicas > 1;
    for (int r = 0; r < world.size(); ++r)
      EXPECT_EQ(all[static_cast<std::size_t>(r)],
                all[static_cast<std::size_t>(r / p.replicas * p.replicas)])
          << p.name << " on tensor rank " << r;
  }
  // Norms and the biases of the output and down projections; key and value heads if they are fewer.
  EXPECT_EQ(held_by_several, world.size() == 2 ? 2 * 6 + 2 : 2 * (6 + 4) + 2);
}

/// Bytes one rank sends over the tensor group in one pass.
std::int64_t bytes_of(Variant v, const Mesh& mesh, Keep keep, std::int64_t layers, bool training) {
  v.config.layers = layers;
  Sharded rank(v, mesh, keep);
  TinyBatch data(2, kLength, v.config.vocabulary, 5, v.documents);
  const MicroBatch batch = data.slice(0, 2, rank.model.shards().mine());
  const std::int64_t before = rank.tensor->bytes_sent();
  if (training)
    rank.model.train(batch, 1.0f);
  else
    rank.model.evaluate(batch);
  return rank.tensor->bytes_sent() - before;
}

TEST(TensorParity, TheBytesSentAreThoseOfTheFormula) {
  const auto world = Communicator::world();
  const Mesh mesh(world, {1, 1, world.size()});
  const Variant v = variants()[0];
  const std::int64_t ranks = world.size(), rows = 2 * ((kLength + ranks - 1) / ranks * ranks);
  const std::int64_t unit = 4 * (ranks - 1) * rows * v.config.width / ranks;
  const std::int64_t statistics = 12 * (ranks - 1) * rows;
  const auto bytes = [&](Keep keep, std::int64_t layers, bool training) {
    return bytes_of(v, mesh, keep, layers, training);
  };
  EXPECT_EQ(bytes(Keep::kAll, 1, false), (4 + 1 + 1) * unit + statistics);
  EXPECT_EQ(bytes(Keep::kAll, 2, false), (8 + 1 + 1) * unit + statistics);
  EXPECT_EQ(bytes(Keep::kAll, 1, true), (4 + 6 + 2 + 2) * unit + statistics);
  EXPECT_EQ(bytes(Keep::kAll, 2, true), (2 * (4 + 6) + 2 + 2) * unit + statistics);
  EXPECT_EQ(bytes(Keep::kAttention, 2, true), (2 * (4 + 6 + 2) + 2 + 2) * unit + statistics);
  EXPECT_EQ(bytes(Keep::kBlock, 2, true), (2 * (4 + 6 + 2) + 2 + 2) * unit + statistics);
}

/// What a rank allocates is what launcher and plan promise.
TEST(TensorParity, TheMemoryEstimateIsWithinFivePercentOfTheAllocator) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  constexpr std::int64_t kTokens = 768;
  for (const Variant& v : variants()) {
    if (v.documents) continue;
    ModelConfig config = v.config;
    config.layers = 4, config.max_positions = kTokens;
    for (const Keep keep : {Keep::kAll, Keep::kAttention, Keep::kBlock}) {
      MemoryConfig memory;
      memory.keep = keep, memory.loss_chunk = 256;
      const std::int64_t before = cpu_device().bytes_in_use();
      Transformer model(config, v.attention, memory,
                        shard_sequence(kTokens, SequenceLayout::kContiguous, nullptr, world.size()),
                        cpu_backend(), {}, OptimizerShard::kNone, shard_weights(group.get()));
      model.parameters().initialize(1);
      TinyBatch data(2, kTokens, config.vocabulary, 1);
      const MicroBatch batch = data.slice(0, 2, model.shards().mine());
      cpu_device().reset_peak();
      model.train(batch, 1.0f);
      const double measured = static_cast<double>(cpu_device().peak_bytes() - before);
      RankShare share;
      share.sequences = 2, share.tokens = kTokens, share.tensor = world.size();
      const MemoryEstimate estimate = memory_estimate(config, memory, share);
      EXPECT_EQ(estimate.states, 16 * model.parameters().count()) << v.name;
      // No optimizer here: weights and gradients only.
      const double predicted = static_cast<double>(estimate.total() - estimate.states / 2);
      EXPECT_NEAR(measured / predicted, 1.0, 0.05) << v.name << " keep " << static_cast<int>(keep);
    }
  }
}

}  // namespace
}  // namespace longspan
