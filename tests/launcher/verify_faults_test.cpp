// ranks: 2 3 4
/// Faults put in on purpose: verify must call each of them BROKEN, and end with status 1. The
/// program's own code runs; only what it computes or communicates with is faulty. The bugs that
/// users of other systems have met are in tests/parity/bug_table_*_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "launcher/verify.hpp"
#include "launcher/verify_attention.hpp"
#include "launcher/verify_training.hpp"
#include "support/faults.hpp"
#include "support/ranks.hpp"

namespace longspan::launcher {
namespace {

using namespace model;
using Group = testing_support::FaultyGroup;
using testing_support::Tampered;

/// Keys arrive as values and values as keys.
class SwapsKeysAndValues : public Group {
 public:
  using Group::Group;
  PendingPtr send_receive(View<const float> out, int to, View<float> in, int from) override {
    return std::make_unique<Tampered>(real_->send_receive(out, to, in, from), [in] {
      for (std::int64_t r = 0; r < in.rows(); ++r)
        std::swap_ranges(in.row(r), in.row(r) + in.cols() / 2, in.row(r) + in.cols() / 2);
    });
  }
};

/// Every block that arrives is the rank's own: the ring does not turn.
class DoesNotTurn : public Group {
 public:
  using Group::Group;
  PendingPtr send_receive(View<const float> out, int to, View<float> in, int from) override {
    return std::make_unique<Tampered>(real_->send_receive(out, to, in, from),
                                      [=] { std::copy(out.begin(), out.end(), in.begin()); });
  }
};

/// Everything is summed but what the last rank has to give.
class ForgetsTheLastRank : public Group {
 public:
  using Group::Group;
  PendingPtr all_reduce_sum(View<float> data) override {
    if (rank() + 1 == size()) std::fill(data.begin(), data.end(), 0.0f);
    return real_->all_reduce_sum(data);
  }
};

/// What several tensor ranks hold keeps its rank's own part of the gradient: nothing else is summed
/// in this way over the tensor axis.
class DoesNotSum : public Group {
 public:
  using Group::Group;
  PendingPtr all_reduce_sum(View<float> data) override {
    return real_->all_reduce_sum(data.slice(0, 0));
  }
};

/// The CPU's kernels, but backward takes the log-sum-exp of each block of keys for that of all
/// keys. Forward stays right, so that only a comparison of the gradients can find it.
class PerBlockLse : public testing_support::FaultyKernels {
 public:
  void attention_backward(const AttentionBackwardArgs& args, Stream& stream) override {
    const AttentionShape& shape = args.shape;
    std::vector<float> o(static_cast<std::size_t>(shape.batch * args.q_batch));
    std::vector<float> lse(static_cast<std::size_t>(shape.batch * shape.heads * shape.queries));
    AttentionForwardArgs forward;
    forward.shape = shape;
    forward.q = args.q, forward.q_row = args.q_row, forward.q_batch = args.q_batch;
    forward.k = args.k, forward.v = args.v, forward.kv_row = args.kv_row,
    forward.kv_batch = args.kv_batch;
    forward.o = o.data(), forward.o_row = args.q_row, forward.o_batch = args.q_batch,
    forward.lse = lse.data();
    real_.attention_forward(forward, stream);
    AttentionBackwardArgs wrong = args;
    wrong.lse = lse.data();
    real_.attention_backward(wrong, stream);
  }
};

class VerifyFaults : public testing::Test {
 protected:
  AttentionRow measure(ProcessGroup& group, Backend backend,
                       SequenceLayout layout = SequenceLayout::kZigzag) const {
    const AttentionCase what = {world.size(),      "ring",          layout,
                                MaskCase::kCausal, HeadsCase::kGqa, Precision::kFp32,
                                /*tokens=*/61};
    const AttentionProblem problem = attention_problem(what);
    const auto truth = attention_truth(problem);
    const auto alone = run_attention(problem, whole_sequence(what.tokens), cpu_backend());
    const auto sharded =
        run_attention(problem, shard_sequence(what.tokens, layout, &group), backend);
    return {what, compare(sharded, problem, truth), compare(alone, problem, truth)};
  }
  TrainingRow measure(const TrainingProblem& problem, const MeshShape& shape,
                      ProcessGroup& gradients, ProcessGroup* tensor = nullptr) const {
    const TrainingProblem right = training_problem("llama", world.size());
    const Mesh alone(Communicator::self(), {1, 1}), mesh(world, shape);
    const auto expected =
        run_training(right, alone, Keep::kAll, *make_mpi_group(alone.world()), cpu_backend());
    const auto outcome =
        run_training(problem, mesh, Keep::kAttention, gradients, cpu_backend(), tensor);
    return {{{shape.data, shape.context, "ring", shape.tensor}, Keep::kAttention, "llama"},
            loss_difference(outcome, expected),
            gradient_difference(outcome, expected),
            true,
            true};
  }
  /// The status of a report in which all other rows are good.
  ExitStatus status_with(const AttentionRow& row) const {
    return report_status(
        {.attention = {row}, .training = {{{{1, 1, ""}, Keep::kAll, "gpt2"}, 0, 0, true, true}}});
  }
  ExitStatus status_with(const TrainingRow& row) const {
    return report_status({.attention = {{{}, {}, {}}}, .training = {row}});
  }
  /// The names of what is broken: "dQ dK".
  static std::string broken(const AttentionRow& row) {
    std::string names;
    for (const std::string& text : broken_bounds(row)) {
      if (!names.empty()) names += ' ';
      names += text.substr(0, text.find(' '));
    }
    return names;
  }
  const Communicator world = Communicator::world();
};

TEST_F(VerifyFaults, WithoutFaultAllIsOk) {
  Group group(world);
  const AttentionRow row = measure(group, cpu_backend());
  EXPECT_ALL_RANKS(broken(row).empty());
  EXPECT_ALL_RANKS(status_with(row) == ExitStatus::kDone);
  for (const MeshShape& shape : {MeshShape{world.size(), 1}, MeshShape{1, world.size()}})
    EXPECT_ALL_RANKS(status_with(measure(training_problem("llama", world.size()), shape, group)) ==
                     ExitStatus::kDone);
}

TEST_F(VerifyFaults, BackwardWithPerBlockLogSumExpIsBroken) {
  Group group(world);
  PerBlockLse kernels;
  Backend backend = cpu_backend();
  const AttentionRow row = measure(group, {backend.device, kernels, backend.stream});
  EXPECT_ALL_RANKS(broken(row) == "dQ dK dV");  // the forward pass is right
  EXPECT_ALL_RANKS(status_with(row) == ExitStatus::kFailed);
}

TEST_F(VerifyFaults, SwappedKeysAndValuesAreBroken) {
  SwapsKeysAndValues group(world);
  const AttentionRow row = measure(group, cpu_backend());
  EXPECT_ALL_RANKS(broken(row) == "output dQ dK dV LSE");
  EXPECT_ALL_RANKS(status_with(row) == ExitStatus::kFailed);
}

TEST_F(VerifyFaults, ARingThatDoesNotTurnIsBroken) {
  DoesNotTurn group(world);
  for (const SequenceLayout layout : {SequenceLayout::kZigzag, SequenceLayout::kContiguous}) {
    const AttentionRow row = measure(group, cpu_backend(), layout);
    EXPECT_ALL_RANKS(broken(row).rfind("output dQ dK dV", 0) == 0);
    EXPECT_ALL_RANKS(status_with(row) == ExitStatus::kFailed);
  }
}

TEST_F(VerifyFaults, AGradientWithoutOneRankIsBroken) {
  ForgetsTheLastRank gradients(world);
  for (const MeshShape& shape : {MeshShape{world.size(), 1}, MeshShape{1, world.size()}}) {
    const TrainingRow row = measure(training_problem("llama", world.size()), shape, gradients);
    EXPECT_ALL_RANKS(broken_bounds(row).size() == 2);
    EXPECT_ALL_RANKS(status_with(row) == ExitStatus::kFailed);
  }
}

TEST_F(VerifyFaults, ReplicatedGradientsThatAreNotSummedAreBroken) {
  if (world.size() == 3) GTEST_SKIP() << "two ranks share the weights";
  const MeshShape shape = {world.size() / 2, 1, 2};
  const Mesh mesh(world, shape);
  Group gradients(mesh.replicas()), right(mesh.tensor());
  DoesNotSum wrong(mesh.tensor());
  const TrainingProblem problem = training_problem("llama", world.size());
  EXPECT_ALL_RANKS(broken_bounds(measure(problem, shape, gradients, &right)).empty());
  const TrainingRow row = measure(problem, shape, gradients, &wrong);
  EXPECT_ALL_RANKS(broken_bounds(row).size() == 2);
  EXPECT_ALL_RANKS(status_with(row) == ExitStatus::kFailed);
}

}  // namespace
}  // namespace longspan::launcher
