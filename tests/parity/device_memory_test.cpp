// label: slow
// ranks: 1 2 4
// timeout: 240
/// Nothing but copies and kernels touches memory of the device: whole runs on a device that the
/// host cannot reach, bit for bit those of the CPU.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "io/prepare_dataset.hpp"
#include "launcher/training_run.hpp"
#include "launcher/verify_attention.hpp"
#include "launcher/verify_training.hpp"
#include "model/decoder.hpp"
#include "model/sampling.hpp"
#include "support/guarded_device.hpp"
#include "support/ranks.hpp"
#include "support/temporary_directory.hpp"
#include "support/tiny_model.hpp"

namespace longspan::launcher {
namespace {

using namespace model;
using testing_support::guarded_compute;

TrainingOutcome train(const TrainingProblem& problem, const Mesh& mesh, Keep keep,
                      const Compute& compute) {
  return run_training(problem, mesh, keep, *compute.make_group(mesh.replicas()), compute.backend,
                      nullptr, compute.make_group);
}

bool same_on_both(const TrainingProblem& problem, const Mesh& mesh, Keep keep) {
  const std::int64_t before = testing_support::guarded_device().accesses();
  const bool same =
      train(problem, mesh, keep, guarded_compute()) == train(problem, mesh, keep, cpu_compute());
  return same && testing_support::guarded_device().accesses() > before;
}

TrainingProblem problem_of(const std::string& model, int ranks) {
  TrainingProblem problem = training_problem(model, ranks);
  problem.steps = 3;
  return problem;
}

TEST(DeviceMemory, EveryModelAndKeepModeTrains) {
  const auto world = Communicator::world();
  const Mesh mesh(world, {world.size(), 1});
  for (const VerifiedModel& model : verified_models())
    for (const Keep keep : {Keep::kAll, Keep::kAttention, Keep::kBlock}) {
      SCOPED_TRACE(std::string(model.name));
      EXPECT_ALL_RANKS(same_on_both(problem_of(std::string(model.name), world.size()), mesh, keep));
    }
  TrainingProblem sinusoidal = problem_of("gpt2", world.size());
  sinusoidal.config.position = PositionKind::kSinusoidal;
  EXPECT_ALL_RANKS(same_on_both(sinusoidal, mesh, Keep::kAttention));
  TrainingProblem gpt2_bf16 = problem_of("gpt2", world.size());
  gpt2_bf16.config.precision = Precision::kBf16;
  EXPECT_ALL_RANKS(same_on_both(gpt2_bf16, mesh, Keep::kAttention));
}

TEST(DeviceMemory, EverySchemeAndEveryAxisTrains) {
  const auto world = Communicator::world();
  if (world.size() == 1) GTEST_SKIP() << "nothing to share";
  for (const TrainingLayout& layout : training_layouts(world.size())) {
    // All schemes under optimizer.shard=none, all kinds of sharding under the first of them.
    const bool first_scheme = layout.scheme.empty() || layout.scheme == "ring";
    if (layout.shard != OptimizerShard::kNone && !first_scheme) continue;
    // Four ranks: what two cannot have.
    const bool two_axes = layout.tensor > 1 && layout.context > 1;
    if (world.size() == 4 && layout.scheme != "hybrid" &&
        !(two_axes && layout.shard == OptimizerShard::kParameters))
      continue;
    const Mesh mesh(world, {layout.data, layout.context, layout.tensor});
    for (const char* model : {"gpt2", "llama-bf16", "window"}) {
      SCOPED_TRACE(to_string(layout) + " " + model);
      TrainingProblem problem = problem_of(model, world.size());
      if (!layout.scheme.empty()) problem.attention.scheme = verified_scheme(layout.scheme).kind;
      problem.shard = layout.shard;
      EXPECT_ALL_RANKS(same_on_both(problem, mesh, Keep::kAttention));
    }
  }
}

TEST(DeviceMemory, VerifysAttentionRowsAreTheSame) {
  const auto world = Communicator::world();
  VerifyScope scope;
  scope.tokens = 53, scope.extent = Extent::kQuick;
  const auto guarded = measure_attention(world, scope, guarded_compute());
  const auto plain = measure_attention(world, scope, cpu_compute());
  ASSERT_EQ(guarded.size(), plain.size());
  if (world.rank() == 0) {
    ASSERT_FALSE(plain.empty());
  }
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const AttentionErrors &a = guarded[i].sharded, &b = plain[i].sharded;
    EXPECT_TRUE(a.output == b.output && a.dq == b.dq && a.dk == b.dk && a.dv == b.dv &&
                a.lse == b.lse)
        << plain[i].what.scheme;
    EXPECT_TRUE(a.padding_is_silent && a.keeps_agree && a.same_again) << plain[i].what.scheme;
  }
}

std::vector<float> generated(const testing_support::Variant& v, const Compute& compute) {
  Transformer model(v.config, v.attention, {},
                    shard_sequence(16, SequenceLayout::kContiguous, nullptr), compute.backend);
  model.parameters().initialize(3);
  Decoder decoder(model, v.attention, 16);
  std::vector<float> all;
  std::vector<std::int32_t> next = {3, 1, 4, 1, 5};
  for (int i = 0; i < 4; ++i) {
    const std::vector<float> logits = decoder.append(next);
    next = {sample_token(logits, v.config.vocabulary, {}, static_cast<std::uint64_t>(i))};
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

TEST(DeviceMemory, EveryModelGenerates) {
  for (auto v : testing_support::variants()) {
    if (v.attention.mask == MaskKind::kFull) continue;
    EXPECT_EQ(generated(v, guarded_compute()), generated(v, cpu_compute())) << v.name;
    v.config.precision = Precision::kBf16;
    EXPECT_EQ(generated(v, guarded_compute()), generated(v, cpu_compute())) << v.name;
  }
}

/// Runs of the launcher's own pieces, with checkpoints.
class DeviceRuns : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = world_.broadcast(own_.path(), 0);
    if (world_.rank() == 0) {
      std::string text;
      for (int i = 0; i < 4000; ++i) text += static_cast<char>('a' + i * i % 23);
      std::ofstream(folder_ + "/text.txt") << text;
      std::ofstream(folder_ + "/more.txt") << text.substr(1000);
      io::PrepareRequest request;
      request.inputs = {folder_ + "/text.txt", folder_ + "/more.txt"};
      request.output = folder_ + "/d.h5";
      request.validation = 0.4;
      io::prepare_dataset(request, [](const char*, std::int64_t, std::int64_t) {});
    }
    world_.barrier();
  }
  void TearDown() override { world_.barrier(); }

  RunConfig config(const std::string& run) const {
    RunConfig c;
    c.run.directory = folder_ + "/" + run, c.run.threads = 1;
    c.data.path = folder_ + "/d.h5", c.data.sequence_length = 16;
    c.data.pack = io::Pack::kDocuments;
    c.model.layers = 3, c.model.width = 16, c.model.heads = 2;
    c.train.micro_batch = 2, c.train.validate_every = 1, c.train.validate_sequences = 4;
    c.memory.offload = Offload::kFile;
    return c;
  }

  /// `steps` steps from where the run directory stands; the losses, and those of validation.
  std::vector<double> steps(const RunConfig& c, const Compute& compute, int steps) {
    TrainingRun run(c, world_, compute);
    if (world_.rank() == 0) std::filesystem::create_directories(c.run.directory);
    world_.barrier();
    run.restore();
    std::vector<double> losses;
    for (int i = 0; i < steps; ++i) {
      const std::vector<io::Batch> batches = {run.loader().next()};
      run.sharding().begin_micro_batch(true);
      losses.push_back(
          world_.all_reduce_sum(run.transformer().train(run.micro_batch(batches[0]), 1e-2f)));
      run.finish_gradients();
      const double norm = run.gradient_norm();
      losses.push_back(norm);
      EXPECT_ALL_RANKS(run.diagnose(batches).find("nothing bad") == 0);
      run.saver().wait_for_copy();
      run.optimizer().update(1e-2, norm, ++run.progress().step);
      run.progress().next_sample += c.train.global_batch;
      losses.push_back(run.validate());
      if (i == 0) run.save(true);  // beside the next step
    }
    run.saver().wait();
    EXPECT_ALL_RANKS(run.saver().take()->failure.empty());
    run.save(false);
    return losses;
  }

  const Communicator world_ = Communicator::world();
  const testing_support::TemporaryDirectory own_;
  std::string folder_;
};

TEST_F(DeviceRuns, TrainSaveResumeAndValidateTheSame) {
  std::vector<RunConfig> layouts = {config("data")};
  layouts[0].mesh.data = world_.size();
  layouts[0].train.global_batch = 2 * world_.size();
  if (world_.size() == 2) {
    layouts.assign(3, config("data"));
    layouts[0].mesh.context = 2, layouts[1].mesh.tensor = 2, layouts[2].mesh.data = 2;
    layouts[2].optimizer.shard = OptimizerShard::kParameters;
    layouts[2].train.global_batch = 4;
  }
  int number = 0;
  for (RunConfig& c : layouts) {
    SCOPED_TRACE(number);
    std::vector<std::vector<double>> all;
    for (const Compute& compute : {cpu_compute(), guarded_compute()}) {
      c.run.directory = folder_ + "/run-" + std::to_string(number++);
      all.push_back(steps(c, compute, 2));
      // The same start from its checkpoint, on this device.
      for (const double x : steps(c, compute, 2)) all.back().push_back(x);
    }
    EXPECT_ALL_RANKS(all[0] == all[1]);
    // And a checkpoint of the device goes on on the CPU.
    const auto on_cpu = steps(c, cpu_compute(), 1);
    c.run.directory = folder_ + "/run-" + std::to_string(number - 2);
    EXPECT_ALL_RANKS(on_cpu == steps(c, guarded_compute(), 1));
  }
}

}  // namespace
}  // namespace longspan::launcher
