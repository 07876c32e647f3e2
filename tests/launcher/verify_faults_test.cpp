// ranks: 2 3
/// The bugs that sharded attention and training are known to have (notes/long-sequences.md section
/// 10), put in on purpose: verify must call each of them BROKEN. The program's own code runs; only
/// what it computes or communicates with is faulty.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "launcher/verify.hpp"
#include "support/ranks.hpp"

namespace longspan::launcher {
namespace {

using namespace model;

/// Calls `then` once the transfer has arrived.
class Tampered : public Pending {
 public:
  Tampered(PendingPtr real, std::function<void()> then)
      : real_(std::move(real)), then_(std::move(then)) {}
  void wait() override { real_->wait(), then_(); }

 private:
  PendingPtr real_;
  std::function<void()> then_;
};

/// A group that works, for its heirs to spoil.
class Group : public ProcessGroup {
 public:
  explicit Group(const Communicator& comm) : real_(make_mpi_group(comm)) {}
  int rank() const override { return real_->rank(); }
  int size() const override { return real_->size(); }
  PendingPtr all_reduce_sum(View<float> data) override { return real_->all_reduce_sum(data); }
  PendingPtr all_gather(View<const float> mine, View<float> all) override {
    return real_->all_gather(mine, all);
  }
  PendingPtr reduce_scatter_sum(View<const float> parts, View<float> mine) override {
    return real_->reduce_scatter_sum(parts, mine);
  }
  PendingPtr reduce_scatter_parts(View<float> data) override {
    return real_->reduce_scatter_parts(data);
  }
  PendingPtr all_gather_parts(View<float> data) override { return real_->all_gather_parts(data); }
  PendingPtr send_receive(View<const float> out, int to, View<float> in, int from) override {
    return real_->send_receive(out, to, in, from);
  }
  PendingPtr all_to_all(View<const float> out, const std::vector<std::int64_t>& out_counts,
                        View<float> in, const std::vector<std::int64_t>& in_counts) override {
    return real_->all_to_all(out, out_counts, in, in_counts);
  }
  std::int64_t bytes_sent() const override { return real_->bytes_sent(); }
  double exposed_seconds() const override { return real_->exposed_seconds(); }

 protected:
  std::unique_ptr<ProcessGroup> real_;
};

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

/// The CPU's kernels, but backward takes the log-sum-exp of each block of keys for that of all
/// keys. Forward stays right, so that only a comparison of the gradients can find it.
class PerBlockLse : public Kernels {
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
  void gemm(const GemmArgs& a, Stream& s) override { real_.gemm(a, s); }
  void norm_forward(const NormForwardArgs& a, Stream& s) override { real_.norm_forward(a, s); }
  void norm_backward(const NormBackwardArgs& a, Stream& s) override { real_.norm_backward(a, s); }
  void gelu_forward(const GeluForwardArgs& a, Stream& s) override { real_.gelu_forward(a, s); }
  void gelu_backward(const GeluBackwardArgs& a, Stream& s) override { real_.gelu_backward(a, s); }
  void swiglu_forward(const SwigluForwardArgs& a, Stream& s) override {
    real_.swiglu_forward(a, s);
  }
  void swiglu_backward(const SwigluBackwardArgs& a, Stream& s) override {
    real_.swiglu_backward(a, s);
  }
  void residual_forward(const ResidualForwardArgs& a, Stream& s) override {
    real_.residual_forward(a, s);
  }
  void residual_backward(const ResidualBackwardArgs& a, Stream& s) override {
    real_.residual_backward(a, s);
  }
  void rotary(const RotaryArgs& a, Stream& s) override { real_.rotary(a, s); }
  void embedding_forward(const EmbeddingForwardArgs& a, Stream& s) override {
    real_.embedding_forward(a, s);
  }
  void embedding_backward(const EmbeddingBackwardArgs& a, Stream& s) override {
    real_.embedding_backward(a, s);
  }
  void attention_forward(const AttentionForwardArgs& a, Stream& s) override {
    real_.attention_forward(a, s);
  }
  void attention_delta(const AttentionDeltaArgs& a, Stream& s) override {
    real_.attention_delta(a, s);
  }
  void cross_entropy(const CrossEntropyArgs& a, Stream& s) override { real_.cross_entropy(a, s); }
  void adamw(const AdamwArgs& a, Stream& s) override { real_.adamw(a, s); }
  void add(std::int64_t n, const float* x, float* y, Stream& s) override { real_.add(n, x, y, s); }
  void add_column_sums(std::int64_t r, std::int64_t c, const float* x, float* y,
                       Stream& s) override {
    real_.add_column_sums(r, c, x, y, s);
  }
  double sum_of_squares(std::int64_t n, const float* x, Stream& s) override {
    return real_.sum_of_squares(n, x, s);
  }
  void round_to_bf16(std::int64_t n, float* x, Stream& s) override { real_.round_to_bf16(n, x, s); }

 private:
  Kernels& real_ = cpu_kernels();
};

class VerifyFaults : public testing::Test {
 protected:
  AttentionRow measure(ProcessGroup& group, Backend backend,
                       SequenceLayout layout = SequenceLayout::kZigzag) const {
    const AttentionProblem problem = attention_problem(MaskCase::kCausal, true, 61);
    const auto truth = attention_truth(problem);
    const auto alone = run_attention(problem, SequenceLayout::kContiguous, nullptr, cpu_backend());
    const auto sharded = run_attention(problem, layout, &group, backend);
    return {{world.size(), "ring", layout, MaskCase::kCausal, true, 61},
            compare(sharded, truth),
            compare(alone, truth)};
  }
  TrainingRow measure(const TrainingProblem& problem, const MeshShape& shape,
                      ProcessGroup& gradients) const {
    const TrainingProblem right = training_problem("llama", world.size());
    const Mesh alone(Communicator::self(), {1, 1}), mesh(world, shape);
    const auto expected =
        run_training(right, alone, Keep::kAll, *make_mpi_group(alone.world()), cpu_backend());
    const auto outcome = run_training(problem, mesh, Keep::kAttention, gradients, cpu_backend());
    return {{shape.data, shape.context, Keep::kAttention, "llama"},
            loss_difference(outcome, expected),
            true,
            true};
  }
  /// The status of a report in which all other rows are good.
  ExitStatus status_with(const AttentionRow& row) const {
    return report_status({{row}, {{{1, 1, Keep::kAll, "gpt2"}, 0, true, true}}, 0});
  }
  ExitStatus status_with(const TrainingRow& row) const {
    return report_status({{{{}, {}, {}}}, {row}, 0});
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
    EXPECT_ALL_RANKS(broken_bounds(row).size() == 1);
    EXPECT_ALL_RANKS(status_with(row) == ExitStatus::kFailed);
  }
}

TEST_F(VerifyFaults, LabelsShiftedAfterShardingAreBroken) {
  // The last token of a chunk learns the next chunk of its rank, or nothing, instead of its
  // successor.
  TrainingProblem problem = training_problem("llama", world.size());
  for (int rank = 0; rank < world.size(); ++rank) {
    const auto positions =
        sequence_positions(problem.tokens, rank, world.size(), SequenceLayout::kZigzag);
    for (std::size_t i = 0; i < positions.size(); ++i)
      for (TrainingProblem::Batch& batch : problem.batches)
        for (std::int64_t b = 0; b < problem.sequences && positions[i] >= 0; ++b) {
          std::int32_t& target =
              batch.targets[static_cast<std::size_t>(b * problem.tokens + positions[i])];
          const std::int32_t next = i + 1 < positions.size() ? positions[i + 1] : -1;
          if (target >= 0 && next != positions[i] + 1)
            target =
                next < 0 ? 0 : batch.inputs[static_cast<std::size_t>(b * problem.tokens + next)];
        }
  }
  Group group(world);
  const TrainingRow row = measure(problem, {1, world.size()}, group);
  EXPECT_ALL_RANKS(broken_bounds(row).size() == 1);
  EXPECT_ALL_RANKS(status_with(row) == ExitStatus::kFailed);
}

}  // namespace
}  // namespace longspan::launcher
