// label: slow
// ranks: 1 2 3 4
// timeout: 120
/// Sharding must not change the answer: 20 optimizer steps on every mesh of these ranks against one
/// rank that does it all.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "model/adamw.hpp"
#include "parallel/data_parallel.hpp"
#include "parallel/mesh.hpp"
#include "support/ranks.hpp"
#include "support/tiny_model.hpp"

namespace longspan {
namespace {

using namespace model;
using testing_support::TinyBatch;
using testing_support::Variant;

constexpr std::int64_t kLength = 29;     // divides by nothing
constexpr std::int64_t kSequences = 12;  // of a global batch: divides by 1, 2, 3, 4 data ranks
constexpr int kSteps = 20;

struct Outcome {
  std::vector<double> losses;
  std::vector<float> first_gradients, weights;
};

/// Trains on `mesh`; three batches in turn, the same on every mesh.
Outcome train(const Variant& v, const Mesh& mesh, Keep keep, int steps = kSteps) {
  const auto context = mesh.shape().context > 1 ? make_mpi_group(mesh.context()) : nullptr;
  const auto gradient_group = make_mpi_group(mesh.world());
  const auto layout = layout_for(v.attention.mask == MaskKind::kCausal, v.attention.window);
  MemoryConfig memory;
  memory.keep = keep;
  SequenceShards shards = shard_sequence(kLength, layout, context.get());
  if (v.attention.scheme == AttentionSchemeKind::kHybrid) split_context(shards, mesh.context(), 2);
  Transformer model(v.config, v.attention, memory, std::move(shards), cpu_backend());
  OptimizerConfig settings;
  settings.learning_rate = 3e-3;
  ParameterSharding sharding(settings.shard, model.parameters(), *gradient_group, mesh.world(),
                             cpu_backend(), 4096);
  sharding.initialize(11);
  AdamW optimizer(model.parameters(), sharding, settings, cpu_backend());

  Outcome outcome;
  const std::int64_t share = kSequences / mesh.shape().data;
  for (int step = 1; step <= steps; ++step) {
    TinyBatch data(kSequences, kLength, v.config.vocabulary, static_cast<std::uint64_t>(step % 3),
                   v.documents);
    double sum = 0;
    // Two micro-batches, so that accumulation is in the comparison too.
    for (std::int64_t part = 0; part < 2; ++part) {
      const std::int64_t first = mesh.data_index() * share + part * (share / 2);
      const std::int64_t count = part == 0 ? share / 2 : share - share / 2;
      if (count == 0) continue;
      sharding.begin_micro_batch(part == 1);
      sum += model.train(data.slice(first, count, model.shards().mine()),
                         1.0f / static_cast<float>(data.valid_targets()));
    }
    sharding.finish_gradients();
    if (step == 1) {
      const View<float> g = model.parameters().gradients();
      outcome.first_gradients.assign(g.begin(), g.end());
    }
    outcome.losses.push_back(mesh.world().all_reduce_sum(sum) /
                             static_cast<double>(data.valid_targets()));
    optimizer.update(settings.learning_rate, optimizer.gradient_norm(), step);
  }
  const View<float> w = model.parameters().weights();
  outcome.weights.assign(w.begin(), w.end());
  return outcome;
}

std::vector<MeshShape> meshes_of(int ranks) {
  std::vector<MeshShape> shapes;
  for (int context = 1; context <= ranks; ++context)
    if (ranks % context == 0) shapes.push_back({ranks / context, context});
  return shapes;
}

double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

/// Every scheme, with another way to keep activations; the first for all steps. One context rank
/// needs no scheme.
struct SchemeCase {
  const char* name;
  AttentionSchemeKind scheme;
  Keep keep;
  int steps;
};
std::vector<SchemeCase> schemes_of(const MeshShape& shape) {
  const SchemeCase ring = {"ring", AttentionSchemeKind::kRing, Keep::kAttention, kSteps};
  if (shape.context == 1) return {ring};
  std::vector<SchemeCase> all = {ring,
                                 {"allgather", AttentionSchemeKind::kAllgather, Keep::kBlock, 4},
                                 {"ulysses", AttentionSchemeKind::kUlysses, Keep::kAttention, 4}};
  if (shape.context == 4)
    all.push_back({"hybrid", AttentionSchemeKind::kHybrid, Keep::kAttention, 4});
  return all;
}

TEST(TrainingParity, EveryMeshLearnsLikeOneRank) {
  const auto world = Communicator::world();
  const Mesh alone(Communicator::self(), {1, 1});
  for (Variant v : testing_support::variants()) {
    const Outcome expected = train(v, alone, Keep::kAll);
    EXPECT_LT(expected.losses.back(), expected.losses.front());
    for (const MeshShape& shape : meshes_of(world.size())) {
      const Mesh mesh(world, shape);
      for (const SchemeCase& c : schemes_of(shape)) {
        v.attention.scheme = c.scheme;
        const Outcome sharded = train(v, mesh, c.keep, c.steps);
        double worst = 0;
        for (std::size_t i = 0; i < sharded.losses.size(); ++i)
          worst = std::max(worst, std::abs(sharded.losses[i] / expected.losses[i] - 1));
        SCOPED_TRACE(v.name + " " + to_string(shape) + " " + c.name);
        EXPECT_ALL_RANKS(worst <= 1e-5);
        EXPECT_ALL_RANKS(relative_difference(sharded.first_gradients, expected.first_gradients) <=
                         2e-6);
      }
    }
  }
}

TEST(TrainingParity, TheSameMeshTwiceIsBitForBitEqual) {
  const auto world = Communicator::world();
  Variant v = testing_support::variants()[4];  // with dropout
  for (const MeshShape& shape : meshes_of(world.size())) {
    const Mesh mesh(world, shape);
    for (const SchemeCase& c : schemes_of(shape)) {
      v.attention.scheme = c.scheme;
      SCOPED_TRACE(to_string(shape) + " " + c.name);
      const Outcome first = train(v, mesh, Keep::kAll, c.steps),
                    second = train(v, mesh, Keep::kBlock, c.steps);
      EXPECT_ALL_RANKS(std::memcmp(first.weights.data(), second.weights.data(),
                                   first.weights.size() * sizeof(float)) == 0);
      EXPECT_ALL_RANKS(first.losses == second.losses);
    }
  }
}

}  // namespace
}  // namespace longspan
