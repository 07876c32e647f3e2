// ranks: 2 3
// timeout: 120
/// The bugs in sharded training that users of public systems have met, one test a row: what
/// bug_table_attention_test.cpp is for attention. Small models learn on a mesh and on one rank, as
/// in `longspan verify`; with the bug put back its bounds are broken.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <string>

#include "launcher/verify.hpp"
#include "launcher/verify_training.hpp"
#include "parallel/random.hpp"
#include "support/faults.hpp"
#include "support/ranks.hpp"

namespace longspan::launcher {
namespace {

using namespace model;
using testing_support::FaultyGroup;
using testing_support::FaultyKernels;
using testing_support::with_kernels;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

/// Sums are multiplied by what each rank believes to be right.
class ScaledGradients : public FaultyGroup {
 public:
  ScaledGradients(const Communicator& comm, float factor) : FaultyGroup(comm), factor_(factor) {}
  PendingPtr all_reduce_sum(View<float> data) override {
    for (float& x : data) x *= factor_;
    return real_->all_reduce_sum(data);
  }

 private:
  float factor_;
};

class BugTable : public testing::Test {
 protected:
  TrainingProblem problem_of(const std::string& model) const {
    TrainingProblem problem = training_problem(model, world.size());
    problem.steps = 6;
    return problem;
  }
  TrainingOutcome run(const TrainingProblem& problem, const MeshShape& shape, Backend backend,
                      ProcessGroup& gradients, Keep keep = Keep::kAll) const {
    const Mesh mesh(world, shape);
    return run_training(problem, mesh, keep, gradients, backend);
  }
  TrainingOutcome one_rank(const TrainingProblem& problem) const {
    const Mesh alone(Communicator::self(), {1, 1});
    return run_training(problem, alone, Keep::kAll, *make_mpi_group(alone.world()), cpu_backend());
  }
  /// The names of what is broken: "loss gradient"; "" = all bounds are kept.
  static std::string broken(const TrainingOutcome& outcome, const TrainingOutcome& expected) {
    TrainingRow row;
    row.what.model = "llama";  // in fp32
    row.loss_difference = loss_difference(outcome, expected);
    row.gradient_difference = gradient_difference(outcome, expected);
    row.same_as_keep_all = row.same_again = true;
    std::string names;
    for (const std::string& text : broken_bounds(row)) {
      if (!names.empty()) names += ' ';
      names += text.substr(0, text.find(' '));
    }
    return names;
  }
  /// As the program is, with every scheme.
  void expect_kept(TrainingProblem problem) {
    const TrainingOutcome expected = one_rank(problem);
    EXPECT_ALL_RANKS(broken(run(problem, data, cpu_backend(), group), expected).empty());
    for (const VerifiedScheme& scheme : verified_schemes()) {
      if (scheme.inner(problem.config, world.size()) == 0) continue;
      problem.attention.scheme = scheme.kind;
      SCOPED_TRACE(scheme.name);
      EXPECT_ALL_RANKS(broken(run(problem, context, cpu_backend(), group), expected).empty());
    }
  }
  const Communicator world = Communicator::world();
  const MeshShape data{world.size(), 1}, context{1, world.size()};
  FaultyGroup group{world};
};

// Megatron-LM#673, #906, verl#4250, SkyRL#1420: AdamW hides it, so that the losses look right.
TEST_F(BugTable, GradientsScaledByTheContextSize) {
  const TrainingProblem problem = problem_of("llama");
  expect_kept(problem);
  const TrainingOutcome expected = one_rank(problem);
  const auto ranks = static_cast<float>(world.size());
  for (const float factor : {ranks, 1 / ranks}) {
    ScaledGradients fault(world, factor);
    const TrainingOutcome outcome = run(problem, context, cpu_backend(), fault);
    EXPECT_ALL_RANKS(broken(outcome, expected).find("gradient") != std::string::npos);
    EXPECT_ALL_RANKS(std::abs(gradient_difference(outcome, expected) -
                              std::abs(static_cast<double>(factor) - 1)) < 1e-5);
  }
}

// verl#4250 and trainers that leave the shift to the model: the label of a shard's last token.
TEST_F(BugTable, LabelsShiftedAfterSharding) {
  const TrainingProblem problem = problem_of("llama");
  expect_kept(problem);
  // The last token of a chunk learns the next chunk of its rank, or nothing, instead of its
  // successor.
  TrainingProblem fault = problem;
  for (int rank = 0; rank < world.size(); ++rank) {
    const auto positions =
        sequence_positions(problem.tokens, rank, world.size(), SequenceLayout::kZigzag);
    for (std::size_t i = 0; i < positions.size(); ++i)
      for (TrainingProblem::Batch& batch : fault.batches)
        for (std::int64_t b = 0; b < problem.sequences && positions[i] >= 0; ++b) {
          std::int32_t& target = batch.targets[at(b * problem.tokens + positions[i])];
          const std::int32_t next = i + 1 < positions.size() ? positions[i + 1] : -1;
          if (target >= 0 && next != positions[i] + 1)
            target = next < 0 ? 0 : batch.inputs[at(b * problem.tokens + next)];
        }
  }
  EXPECT_ALL_RANKS(broken(run(fault, context, cpu_backend(), group), one_rank(problem)) ==
                   "loss gradient");
}

// verl#2857, transformers#35301: every rank takes the mean over its own valid tokens.
TEST_F(BugTable, MeanOverEachRanksOwnTokens) {
  const TrainingProblem problem = problem_of("llama");
  expect_kept(problem);
  for (const MeshShape& shape : {data, context}) {
    const Mesh mesh(world, shape);
    const TrainingProblem::Batch& batch = problem.batches[1];  // of the first step
    const auto positions = sequence_positions(problem.tokens, mesh.context_index(), shape.context,
                                              SequenceLayout::kZigzag);
    std::int64_t valid = 0;
    for (std::int64_t b = part_begin(problem.sequences, mesh.data_index(), shape.data);
         b < part_begin(problem.sequences, mesh.data_index() + 1, shape.data); ++b)
      for (const std::int32_t p : positions)
        valid += p >= 0 && batch.targets[at(b * problem.tokens + p)] >= 0;
    ScaledGradients fault(world, static_cast<float>(static_cast<double>(batch.valid) /
                                                    (world.size() * static_cast<double>(valid))));
    SCOPED_TRACE(to_string(shape));
    EXPECT_ALL_RANKS(
        broken(run(problem, shape, cpu_backend(), fault), one_rank(problem)).find("gradient") !=
        std::string::npos);
  }
}

// SkyRL#1420: a metric over the wrong group is a multiple of the right one.
TEST_F(BugTable, MetricsOverTheWrongGroup) {
  const TrainingProblem problem = problem_of("llama");
  const TrainingOutcome expected = one_rank(problem);
  const auto metrics_agree = [&](const TrainingOutcome& outcome) {
    bool agree = loss_difference(outcome, expected) <= kLossBound;
    for (std::size_t i = 0; i < expected.gradient_norms.size(); ++i)
      agree = agree && std::abs(outcome.gradient_norms[i] / expected.gradient_norms[i] - 1) <= 1e-5;
    return agree;
  };
  TrainingProblem fault = problem;  // tokens counted over the group of one rank
  for (TrainingProblem::Batch& batch : fault.batches) batch.valid /= world.size();
  for (const MeshShape& shape : {data, context}) {
    EXPECT_ALL_RANKS(metrics_agree(run(problem, shape, cpu_backend(), group)));
    EXPECT_ALL_RANKS(!metrics_agree(run(fault, shape, cpu_backend(), group)));
  }
}

// ring-flash-attention's README asks its users to adapt the offset; who forgets is not told.
TEST_F(BugTable, RotaryPositionsCountedOnEachRank) {
  class Fault : public FaultyKernels {
    void rotary(const RotaryArgs& args, Stream& stream) override {
      const std::int64_t half = args.head_size / 2;
      std::vector<float> table(at(args.tokens * args.head_size));
      std::vector<std::int32_t> local(at(args.tokens));
      std::iota(local.begin(), local.end(), 0);
      for (std::int64_t t = 0; t < args.tokens; ++t)
        for (std::int64_t i = 0; i < half; ++i) {
          const double angle = static_cast<double>(t) * std::pow(10000.0, -1.0 * i / half);
          table[at(t * args.head_size + i)] = static_cast<float>(std::cos(angle));
          table[at(t * args.head_size + half + i)] = static_cast<float>(std::sin(angle));
        }
      RotaryArgs wrong = args;
      wrong.positions = local.data(), wrong.cos_sin = table.data();
      real_.rotary(wrong, stream);
    }
  } fault;
  const TrainingProblem problem = problem_of("llama");
  const TrainingOutcome expected = one_rank(problem);
  expect_kept(problem);
  // With whole sequences on every rank nobody notices.
  EXPECT_ALL_RANKS(broken(run(problem, data, with_kernels(fault), group), expected).empty());
  EXPECT_ALL_RANKS(
      broken(run(problem, context, with_kernels(fault), group), expected).find("gradient") !=
      std::string::npos);
}

// TransformerEngine#1031: what is recomputed draws other random numbers.
TEST_F(BugTable, DropoutStateLostInRecomputation) {
  class Fault : public FaultyKernels {
    void residual_forward(const ResidualForwardArgs& args, Stream& stream) override {
      ResidualForwardArgs wrong = args;
      const Dropout& dropout = args.dropout;
      if (dropout.probability > 0 && !seen_.insert({dropout.key, dropout.sequences[0]}).second)
        wrong.dropout.key += 1;  // a second time: recomputation
      real_.residual_forward(wrong, stream);
    }
    std::set<std::pair<std::uint64_t, std::int64_t>> seen_;
  };
  const TrainingProblem problem = problem_of("gpt2");
  EXPECT_GT(problem.config.dropout, 0);
  const TrainingOutcome expected = run(problem, context, cpu_backend(), group, Keep::kAll);
  for (const Keep keep : {Keep::kAll, Keep::kAttention, Keep::kBlock}) {
    Fault fault;
    SCOPED_TRACE(name_of(keep));
    EXPECT_ALL_RANKS(run(problem, context, cpu_backend(), group, keep) == expected);
    EXPECT_ALL_RANKS((run(problem, context, with_kernels(fault), group, keep) == expected) ==
                     (keep == Keep::kAll));
  }
}

// TransformerEngine#961: random numbers that depend on the rank.
TEST_F(BugTable, DropoutThatDependsOnTheRank) {
  class Fault : public FaultyKernels {
   public:
    explicit Fault(int rank) : rank_(static_cast<std::uint64_t>(rank)) {}
    void residual_forward(const ResidualForwardArgs& args, Stream& stream) override {
      ResidualForwardArgs wrong = args;
      wrong.dropout.key += rank_;
      real_.residual_forward(wrong, stream);
    }
    void residual_backward(const ResidualBackwardArgs& args, Stream& stream) override {
      ResidualBackwardArgs wrong = args;
      wrong.dropout.key += rank_;
      real_.residual_backward(wrong, stream);
    }

   private:
    std::uint64_t rank_;
  } fault(world.rank());
  const TrainingProblem problem = problem_of("gpt2");
  expect_kept(problem);
  for (const MeshShape& shape : {data, context})
    EXPECT_ALL_RANKS(broken(run(problem, shape, with_kernels(fault), group), one_rank(problem)) ==
                     "loss gradient");
}

// Megatron-LM#1764, NeMo#14488: one rank without a token makes every weight NaN.
TEST_F(BugTable, NanWhereARankHoldsOnlyPadding) {
  class Fault : public FaultyKernels {
    void attention_forward(const AttentionForwardArgs& args, Stream& stream) override {
      real_.attention_forward(args, stream);
      const AttentionShape& shape = args.shape;
      for (std::int64_t b = 0; b < shape.batch; ++b)
        for (std::int64_t h = 0; h < shape.heads; ++h)
          for (std::int64_t i = 0; i < shape.queries; ++i)
            if (std::isinf(args.lse[(b * shape.heads + h) * shape.queries + i]))
              args.o[b * args.o_batch + i * args.o_row + h * shape.head_size] =
                  std::numeric_limits<float>::quiet_NaN();  // 0 / 0
    }
  } fault;
  // The first tokens of every sequence: in zigzag, none of them is the last rank's.
  TrainingProblem problem = problem_of("llama"), whole = problem;
  problem.tokens = world.size() - 1;
  for (std::size_t n = 0; n < problem.batches.size(); ++n) {
    TrainingProblem::Batch& batch = problem.batches[n] = {};
    for (std::int64_t b = 0; b < problem.sequences; ++b)
      for (std::int64_t p = 0; p < problem.tokens; ++p) {
        batch.inputs.push_back(whole.batches[n].inputs[at(b * whole.tokens + p)]);
        batch.targets.push_back(whole.batches[n].targets[at(b * whole.tokens + p)]);
        batch.documents.push_back(0);
        batch.valid += batch.targets.back() >= 0;
      }
  }
  expect_kept(problem);
  EXPECT_ALL_RANKS(broken(run(problem, context, with_kernels(fault), group), one_rank(problem)) ==
                   "loss gradient");
}

// Not in the table, but in the contract: the same mesh twice is bit for bit equal.
TEST_F(BugTable, SumsInTheOrderOfArrival) {
  class Fault : public FaultyGroup {
   public:
    using FaultyGroup::FaultyGroup;
    PendingPtr all_reduce_sum(View<float> data) override {
      auto all = std::make_shared<std::vector<float>>(at(data.size() * size()));
      const View<float> gathered(all->data(), data.size() * size());
      return std::make_unique<testing_support::Tampered>(
          real_->all_gather(data, gathered), [this, all, data, first = first_] {
            std::fill(data.begin(), data.end(), 0.0f);
            for (int n = 0; n < size(); ++n)
              for (std::int64_t i = 0; i < data.size(); ++i)
                data[i] += (*all)[at((first + n) % size() * data.size() + i)];
          });
    }
    int first_ = 0;  ///< whose share arrives before the others
  } fault(world);
  TrainingProblem problem = problem_of("llama");
  for (const MeshShape& shape : {data, context})
    for (const VerifiedScheme& scheme : verified_schemes()) {
      if (scheme.inner(problem.config, world.size()) == 0) continue;
      problem.attention.scheme = scheme.kind;
      SCOPED_TRACE(to_string(shape) + " " + std::string(scheme.name));
      EXPECT_ALL_RANKS(run(problem, shape, cpu_backend(), group) ==
                       run(problem, shape, cpu_backend(), group));
      if (world.size() == 2) continue;  // two summands have no order
      fault.first_ = 0;
      const TrainingOutcome first = run(problem, shape, cpu_backend(), fault);
      fault.first_ = 1;
      EXPECT_ALL_RANKS(!(run(problem, shape, cpu_backend(), fault) == first));
    }
}

// cudnn-frontend#1131: nothing may be read before it is written.
TEST_F(BugTable, StaleMemoryInAStep) {
  class Fault : public FaultyKernels {
    void attention_forward(const AttentionForwardArgs& args, Stream& stream) override {
      AttentionForwardArgs wrong = args;
      wrong.merge = true;  // into what the last owner of the memory left
      std::vector<float> sum(at(args.shape.batch * args.shape.heads * args.shape.queries),
                             std::numeric_limits<float>::quiet_NaN());
      if (!wrong.sum) wrong.sum = sum.data();
      real_.attention_forward(wrong, stream);
    }
  } fault;
  testing_support::PoisonedDevice poisoned;
  const Backend cpu = cpu_backend();
  for (const char* model : {"gpt2", "llama", "window"}) {
    const TrainingProblem problem = problem_of(model);
    const TrainingOutcome expected = run(problem, context, cpu, group);
    for (const Keep keep : {Keep::kAll, Keep::kAttention, Keep::kBlock}) {
      SCOPED_TRACE(std::string(model) + " " + std::string(name_of(keep)));
      EXPECT_ALL_RANKS(run(problem, context, {poisoned, cpu.kernels, cpu.stream}, group, keep) ==
                       expected);
    }
    EXPECT_ALL_RANKS(!(run(problem, context, {poisoned, fault, cpu.stream}, group) == expected));
  }
}

}  // namespace
}  // namespace longspan::launcher
