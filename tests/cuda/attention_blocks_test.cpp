// Calls cut into dense blocks, as cuDNN serves them, with plain loops in double in cuDNN's place,
// against the dense oracle.
#include "model/kernels/cuda/attention_blocks.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cuda/own_attention_runner.hpp"
#include "parallel/cuda/launch.hpp"

namespace longspan {
namespace {

using model::AttentionShape;
using model::PositionRuns;
using namespace model::cuda;
using namespace testing_support;
using Floats = std::vector<float>;
using Ints = std::vector<std::int32_t>;

constexpr double kRelative = 4e-3, kAbsoluteLse = 1e-5;

/// A strided tensor on the device, read and written as [batch][token][head][d] on the host.
template <class T>
class OnHost {
 public:
  OnHost(const HeadTensor<const T>& x, const DenseShape& shape, std::int64_t tokens,
         std::int64_t heads)
      : strides_(x) {
    values_.resize((shape.batch - 1) * x.batch + (tokens - 1) * x.row + (heads - 1) * x.head +
                   shape.head_size);
    LONGSPAN_CUDA(
        cudaMemcpy(values_.data(), x.data, values_.size() * sizeof(T), cudaMemcpyDeviceToHost));
  }
  T& at(std::int64_t b, std::int64_t token, std::int64_t head, std::int64_t d) {
    return values_[b * strides_.batch + token * strides_.row + head * strides_.head + d];
  }
  void write(T* data) {
    LONGSPAN_CUDA(
        cudaMemcpy(data, values_.data(), values_.size() * sizeof(T), cudaMemcpyHostToDevice));
  }

 private:
  HeadTensor<const T> strides_;
  std::vector<T> values_;
};

double wide(std::uint16_t bits) {
  const std::uint32_t word = std::uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}

struct Calls {
  int forward = 0, backward = 0;
};

class PlainDense final : public DenseAttention {
 public:
  explicit PlainDense(Calls& calls, bool willing = true) : calls_(calls), willing_(willing) {}
  bool serves(const DenseForward&) override { return willing_; }
  bool serves(const DenseBackward& call) override {
    EXPECT_EQ(call.shape.heads, call.shape.kv_heads);
    return willing_;
  }
  std::string description() const override { return "plain loops"; }

  void forward(const DenseForward& call, Stream&) override {
    ++calls_.forward;
    const DenseShape& s = call.shape;
    auto q = host(call.q, s, s.queries, s.heads), k = host(call.k, s, s.keys, s.kv_heads),
         v = host(call.v, s, s.keys, s.kv_heads);
    OnHost<float> o({call.o.data, call.o.batch, call.o.row, call.o.head}, s, s.queries, s.heads);
    Floats lse(s.batch * s.heads * s.queries);
    for (std::int64_t b = 0; b < s.batch; ++b)
      for (std::int64_t h = 0; h < s.heads; ++h)
        for (std::int64_t i = 0; i < s.queries; ++i) {
          const std::int64_t kv = h / (s.heads / s.kv_heads), seen = last_key(s, i);
          std::vector<double> score(seen), sum(s.head_size);
          double total = 0;
          for (std::int64_t j = first_key(s, i); j < seen; ++j) {
            for (std::int64_t d = 0; d < s.head_size; ++d)
              score[j] += s.scale * wide(q.at(b, i, h, d)) * wide(k.at(b, j, kv, d));
            total += std::exp(score[j]);
            for (std::int64_t d = 0; d < s.head_size; ++d)
              sum[d] += std::exp(score[j]) * wide(v.at(b, j, kv, d));
          }
          lse[(b * s.heads + h) * s.queries + i] = static_cast<float>(std::log(total));
          for (std::int64_t d = 0; d < s.head_size; ++d)
            o.at(b, i, h, d) = static_cast<float>(sum[d] / total);
        }
    o.write(call.o.data);
    write(lse, call.lse);
  }

  void backward(const DenseBackward& call, Stream&) override {
    ++calls_.backward;
    const DenseShape& s = call.shape;
    auto q = host(call.q, s, s.queries, s.heads), dout = host(call.dout, s, s.queries, s.heads),
         o = host(call.o, s, s.queries, s.heads), k = host(call.k, s, s.keys, s.heads),
         v = host(call.v, s, s.keys, s.heads);
    Floats lse(s.batch * s.heads * s.queries);
    LONGSPAN_CUDA(
        cudaMemcpy(lse.data(), call.lse, lse.size() * sizeof(float), cudaMemcpyDeviceToHost));
    const std::int64_t size = s.head_size;
    std::vector<double> dq(s.batch * s.queries * s.heads * size),
        dk(s.batch * s.keys * s.heads * size), dv(dk.size());
    for (std::int64_t b = 0; b < s.batch; ++b)
      for (std::int64_t h = 0; h < s.heads; ++h)
        for (std::int64_t i = 0; i < s.queries; ++i) {
          double delta = 0;
          for (std::int64_t d = 0; d < size; ++d)
            delta += wide(dout.at(b, i, h, d)) * wide(o.at(b, i, h, d));
          for (std::int64_t j = first_key(s, i); j < last_key(s, i); ++j) {
            double score = -lse[(b * s.heads + h) * s.queries + i], dp = 0;
            for (std::int64_t d = 0; d < size; ++d) {
              score += s.scale * wide(q.at(b, i, h, d)) * wide(k.at(b, j, h, d));
              dp += wide(dout.at(b, i, h, d)) * wide(v.at(b, j, h, d));
            }
            const double p = std::exp(score), ds = s.scale * p * (dp - delta);
            const std::int64_t query = ((b * s.queries + i) * s.heads + h) * size,
                               key = ((b * s.keys + j) * s.heads + h) * size;
            for (std::int64_t d = 0; d < size; ++d) {
              dq[query + d] += ds * wide(k.at(b, j, h, d));
              dk[key + d] += ds * wide(q.at(b, i, h, d));
              dv[key + d] += p * wide(dout.at(b, i, h, d));
            }
          }
        }
    write(Floats(dq.begin(), dq.end()), call.dq);
    write(Floats(dk.begin(), dk.end()), call.dk);
    write(Floats(dv.begin(), dv.end()), call.dv);
  }

 private:
  /// Of those that query i sees; the last is one behind them.
  static std::int64_t first_key(const DenseShape& s, std::int64_t i) {
    return s.window > 0 ? std::max<std::int64_t>(0, i + 1 - s.window) : 0;
  }
  static std::int64_t last_key(const DenseShape& s, std::int64_t i) {
    return s.causal ? i + 1 : s.keys;
  }
  static OnHost<std::uint16_t> host(const HeadTensor<const std::uint16_t>& x, const DenseShape& s,
                                    std::int64_t tokens, std::int64_t heads) {
    return OnHost<std::uint16_t>(x, s, tokens, heads);
  }
  static void write(const Floats& from, float* to) {
    LONGSPAN_CUDA(cudaMemcpy(to, from.data(), from.size() * sizeof(float), cudaMemcpyHostToDevice));
  }
  Calls& calls_;
  bool willing_;
};

class AttentionBlocks : public testing::TestWithParam<std::int64_t> {
 protected:
  AttentionBlocks()
      : runner_(std::make_unique<PlainDense>(calls_), {.workspace_bytes = GetParam()}) {}
  void serve_one_run(std::int64_t window);
  Calls calls_;
  OwnAttentionRunner runner_;
};
// All heads at once, and one kv head at a time.
INSTANTIATE_TEST_SUITE_P(Workspaces, AttentionBlocks,
                         testing::Values(std::int64_t{1} << 30, std::int64_t{1}));

PositionRuns runs(std::int64_t first, std::int64_t tokens) {
  return {1, {{first, tokens}, {}}};
}

void expect_equal(const AttentionForward& actual, const AttentionOutputs& expected) {
  EXPECT_LE(relative_error(actual.o, expected.o), kRelative);
  EXPECT_LE(largest_error(actual.lse, expected.lse), kAbsoluteLse);
}
void expect_equal(const AttentionGradients& actual, const AttentionOutputs& expected,
                  double floor = 0.0) {
  EXPECT_LE(relative_error(actual.dq, expected.dq, floor), kRelative);
  EXPECT_LE(relative_error(actual.dk, expected.dk, floor), kRelative);
  EXPECT_LE(relative_error(actual.dv, expected.dv), kRelative);
}

TEST_P(AttentionBlocks, ServeOneRun) {
  for (const std::int64_t window : {0, 7, 1, 40, 39}) {
    SCOPED_TRACE(window);
    serve_one_run(window);
  }
}

void AttentionBlocks::serve_one_run(std::int64_t window) {
  calls_ = {};
  AttentionProblem problem(2, 40, 40, 4, 2, 16, {.causal = true, .window = window});
  problem.rounded_to_bf16().shape.query_runs = problem.shape.key_runs = runs(0, 40);
  const AttentionOutputs expected = problem.reference();
  const AttentionForward actual = attention_forward(problem, 12, nullptr, false, runner_);
  expect_equal(actual, expected);
  EXPECT_TRUE(actual.gaps_are_untouched);
  const AttentionGradients gradients = attention_backward(problem, actual, 12, 0.0f, runner_);
  // In a window of one every gradient of a score is 0.
  expect_equal(gradients, expected, window == 1 ? 36.0 : 0.0);
  EXPECT_TRUE(gradients.gaps_are_untouched);
  const int slices = GetParam() == 1 ? 2 : 1;
  EXPECT_EQ(calls_.forward, slices);
  EXPECT_EQ(calls_.backward, 2 * slices);  // each query head of a group by itself
}

TEST_P(AttentionBlocks, ServeZigzagRings) {
  constexpr int kRanks = 2, kChunk = 12, kTokens = 2 * kRanks * kChunk;
  AttentionProblem whole(2, kTokens, kTokens, 4, 2, 16);
  const AttentionOutputs expected = whole.rounded_to_bf16().reference();
  const auto tokens = [&](int rank) {
    Ints all = counting(kChunk, rank * kChunk),
         late = counting(kChunk, (2 * kRanks - 1 - rank) * kChunk);
    all.insert(all.end(), late.begin(), late.end());
    return all;
  };
  const auto zigzag = [&](int rank) {
    return PositionRuns{2, {{rank * kChunk, kChunk}, {(2 * kRanks - 1 - rank) * kChunk, kChunk}}};
  };
  const std::int64_t width = 4 * 16, kv_width = 2 * 16, local = 2 * kChunk;
  AttentionForward o{Floats(2 * kTokens * width), Floats(2 * 4 * kTokens), {}};
  AttentionGradients all{Floats(2 * kTokens * width), Floats(2 * kTokens * kv_width),
                         Floats(2 * kTokens * kv_width)};
  const auto scatter_add = [&](const Floats& from, std::int64_t row, const Ints& to_tokens,
                               Floats& to) {
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t i = 0; i < local; ++i)
        for (std::int64_t d = 0; d < row; ++d)
          to[(b * kTokens + to_tokens[i]) * row + d] += from[(b * local + i) * row + d];
  };
  const auto part_of = [&](int r, int step) {
    AttentionProblem part = whole.slice(tokens(r), tokens((r + step) % kRanks));
    part.shape.bf16_operands = true;
    part.shape.query_runs = zigzag(r);
    part.shape.key_runs = zigzag((r + step) % kRanks);
    return part;
  };
  for (int r = 0; r < kRanks; ++r) {
    AttentionForward merged;
    for (int step = 0; step < kRanks; ++step) {
      AttentionProblem part = part_of(r, step);
      merged =
          attention_forward(part, 4, step == 0 ? nullptr : &merged, step + 1 < kRanks, runner_);
    }
    scatter_add(merged.o, width, tokens(r), o.o);
    for (std::int64_t row = 0; row < 2 * 4; ++row)
      for (std::int64_t i = 0; i < local; ++i)
        o.lse[row * kTokens + tokens(r)[i]] = merged.lse[row * local + i];
    for (int step = 0; step < kRanks; ++step) {
      AttentionProblem part = part_of(r, step);
      const AttentionGradients gradients = attention_backward(part, merged, 4, 0.0f, runner_);
      scatter_add(gradients.dq, width, tokens(r), all.dq);
      scatter_add(gradients.dk, kv_width, tokens((r + step) % kRanks), all.dk);
      scatter_add(gradients.dv, kv_width, tokens((r + step) % kRanks), all.dv);
    }
  }
  expect_equal(o, expected);
  expect_equal(all, expected);
  EXPECT_GT(calls_.forward, 0);
}

/// A block of keys that lies wholly in the queries' future.
TEST_P(AttentionBlocks, SeeNothing) {
  AttentionProblem problem(1, 8, 8, 2, 2, 16);
  for (auto& position : problem.rounded_to_bf16().key_positions) position += 100;
  problem.shape.query_runs = runs(0, 8);
  problem.shape.key_runs = runs(100, 8);
  const AttentionForward actual = attention_forward(problem, 0, nullptr, false, runner_);
  EXPECT_EQ(actual.o, Floats(actual.o.size(), 0.0f));
  for (const float lse : actual.lse) EXPECT_EQ(lse, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(attention_backward(problem, actual, 0, 0.0f, runner_).dk, Floats(8 * 2 * 16, 0.0f));
  EXPECT_EQ(calls_.forward + calls_.backward, 0);
}

/// What is not made of dense blocks, or is refused, goes to the own kernels.
TEST(AttentionBlocksChoice, FallsBackToOwnKernels) {
  Calls calls;
  const auto run = [&](AttentionProblem problem, bool willing = true) {
    OwnAttentionRunner runner(std::make_unique<PlainDense>(calls, willing));
    const AttentionOutputs expected = problem.reference();
    const AttentionForward actual = attention_forward(problem, 0, nullptr, false, runner);
    expect_equal(actual, expected);
    expect_equal(attention_backward(problem, actual, 0, 0.0f, runner), expected);
  };
  const auto known = [](AttentionProblem problem) {
    problem.shape.query_runs = problem.shape.key_runs = runs(0, 20);
    return problem.rounded_to_bf16();
  };
  AttentionProblem unknown(1, 20, 20, 1, 1, 16);
  run(unknown.rounded_to_bf16());
  run(known(AttentionProblem(1, 20, 20, 1, 1, 16, {false, 7})));
  run(known(AttentionProblem(1, 20, 20, 1, 1, 16).with_documents()));
  run(known(AttentionProblem(1, 20, 20, 1, 1, 12)));
  AttentionProblem exact = known(AttentionProblem(1, 20, 20, 1, 1, 16));
  exact.shape.bf16_operands = false;
  run(exact);
  run(known(AttentionProblem(1, 20, 20, 1, 1, 16)), false);
  EXPECT_EQ(calls.forward + calls.backward, 0);
  run(known(AttentionProblem(1, 20, 20, 1, 1, 16)));
  EXPECT_EQ(calls.forward, 1);
  EXPECT_EQ(calls.backward, 1);
}

/// Copies in bf16 that do not fit are made slice by slice of heads: the same bits.
TEST(AttentionWorkspace, DoesNotChangeTheResult) {
  AttentionProblem problem(2, 70, 90, 6, 3, 64);
  problem.rounded_to_bf16().with_documents();
  OwnAttentionRunner all({.deterministic = true}),
      short_of_memory({.deterministic = true, .workspace_bytes = 1});
  const AttentionForward expected = attention_forward(problem, 0, nullptr, false, all);
  const AttentionForward actual = attention_forward(problem, 0, nullptr, false, short_of_memory);
  EXPECT_EQ(actual.o, expected.o);
  EXPECT_EQ(actual.lse, expected.lse);
  const AttentionGradients gradients = attention_backward(problem, expected, 0, 0.0f, all),
                           in_slices =
                               attention_backward(problem, expected, 0, 0.0f, short_of_memory);
  EXPECT_EQ(in_slices.dq, gradients.dq);
  EXPECT_EQ(in_slices.dk, gradients.dk);
  EXPECT_EQ(in_slices.dv, gradients.dv);
}

TEST(AttentionDescription, SaysWhyCudnnIsNotUsed) {
  EXPECT_EQ(Attention(linked_backend().device, {.deterministic = true}).description(),
            "own kernels: run.deterministic=on");
  EXPECT_EQ(Attention(linked_backend().device).description(),
            "own kernels: built without cuDNN's headers");
}

TEST(DenseBlocks, AreThoseOfTheMask) {
  AttentionShape shape;
  shape.queries = 8, shape.keys = 8;
  shape.query_runs = shape.key_runs = {2, {{0, 4}, {12, 4}}};
  const auto blocks = model::cuda::dense_blocks(shape);
  ASSERT_TRUE(blocks);
  ASSERT_EQ(blocks->size(), 3u);
  EXPECT_TRUE((*blocks)[0].causal);
  EXPECT_FALSE((*blocks)[1].causal);  // late queries see all early keys
  EXPECT_EQ((*blocks)[1].first_query, 4);
  EXPECT_EQ((*blocks)[1].first_key, 0);
  EXPECT_TRUE((*blocks)[2].causal);
  shape.key_runs = {2, {{4, 4}, {8, 4}}};  // another rank's: only the late queries see them
  ASSERT_EQ(model::cuda::dense_blocks(shape)->size(), 2u);
  shape.key_runs = {1, {{2, 8}, {}}};  // a diagonal that is not the block's
  EXPECT_FALSE(model::cuda::dense_blocks(shape));
  shape.key_runs = {1, {{0, 7}, {}}};  // not all keys
  EXPECT_FALSE(model::cuda::dense_blocks(shape));
}

TEST(DenseBlocks, KnowWindows) {
  AttentionShape shape;
  shape.queries = shape.keys = 8;
  shape.query_runs = shape.key_runs = {2, {{0, 4}, {12, 4}}};
  shape.mask.window = 3;
  auto blocks = model::cuda::dense_blocks(shape);
  ASSERT_TRUE(blocks);
  ASSERT_EQ(blocks->size(), 2u);  // early keys are out of the late queries' sight
  EXPECT_TRUE((*blocks)[1].causal);
  EXPECT_EQ((*blocks)[1].first_key, 4);
  EXPECT_EQ((*blocks)[1].window, 3);
  shape.mask.window = 4;  // hides nothing of a square of 4
  EXPECT_EQ(model::cuda::dense_blocks(shape)->at(0).window, 0);
  shape.mask.window = 9;  // 12 - 3: the first late query nearly sees the last early key
  EXPECT_EQ(model::cuda::dense_blocks(shape)->size(), 2u);
  shape.mask.window = 10;
  EXPECT_FALSE(model::cuda::dense_blocks(shape));
  shape.mask.window = 15;  // all but one pair
  EXPECT_FALSE(model::cuda::dense_blocks(shape));
  shape.mask.window = 16;
  blocks = model::cuda::dense_blocks(shape);
  ASSERT_TRUE(blocks);
  ASSERT_EQ(blocks->size(), 3u);
  EXPECT_EQ((*blocks)[1].window, 0);
  EXPECT_FALSE((*blocks)[1].causal);
  shape.mask.causal = false;  // a window to both sides
  EXPECT_EQ(model::cuda::dense_blocks(shape)->size(), 4u);
  shape.mask.window = 15;
  EXPECT_FALSE(model::cuda::dense_blocks(shape));
  shape.mask.window = std::int64_t{1} << 40;
  EXPECT_EQ(model::cuda::dense_blocks(shape)->size(), 4u);
}

}  // namespace
}  // namespace longspan
