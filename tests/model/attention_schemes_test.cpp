// label: slow
// ranks: 1 2 3 4 5 6 7
// timeout: 120
/// Every way to share a sequence against dense attention in double precision, and what it sends
/// against the formulas of attention_traffic.hpp.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "model/attention.hpp"
#include "model/attention_traffic.hpp"
#include "model/flops.hpp"
#include "parallel/random.hpp"
#include "support/attention_reference.hpp"
#include "support/ranks.hpp"
#include "support/tiny_model.hpp"

namespace longspan::model {
namespace {

using testing_support::AttentionInputs;
using testing_support::AttentionOutputs;

constexpr std::int64_t kSequences = 2, kHeadSize = 8;

struct NamedScheme {
  const char* name;
  AttentionSchemeKind kind;
};
constexpr NamedScheme kSchemes[] = {{"ring", AttentionSchemeKind::kRing},
                                    {"allgather", AttentionSchemeKind::kAllgather},
                                    {"ulysses", AttentionSchemeKind::kUlysses},
                                    {"hybrid", AttentionSchemeKind::kHybrid}};

struct NamedMask {
  const char* name;
  MaskKind kind;
  std::int64_t window;
  bool documents;
  SequenceLayout layout;
};
const NamedMask kMasks[] = {
    {"causal", MaskKind::kCausal, 0, false, SequenceLayout::kZigzag},
    {"window", MaskKind::kCausal, 5, false, SequenceLayout::kContiguous},
    {"window over several ranks", MaskKind::kCausal, 18, false, SequenceLayout::kContiguous},
    {"window longer than the sequence", MaskKind::kCausal, 99, false, SequenceLayout::kContiguous},
    {"window of two", MaskKind::kCausal, 2, false, SequenceLayout::kContiguous},
    {"window, zigzag", MaskKind::kCausal, 6, false, SequenceLayout::kZigzag},
    {"window and documents", MaskKind::kCausal, 13, true, SequenceLayout::kContiguous},
    {"documents", MaskKind::kCausal, 0, true, SequenceLayout::kZigzag},
    {"full", MaskKind::kFull, 0, false, SequenceLayout::kContiguous},
    {"full window", MaskKind::kFull, 7, false, SequenceLayout::kContiguous},
    {"full window over several ranks", MaskKind::kFull, 16, true, SequenceLayout::kContiguous},
    {"full window, zigzag", MaskKind::kFull, 7, false, SequenceLayout::kZigzag},
    {"full documents", MaskKind::kFull, 0, true, SequenceLayout::kContiguous},
};

/// MHA, GQA, MQA; heads that ranks divide, do not divide, and that are fewer than they are; shares
/// that begin and end inside a group.
struct Heads {
  std::int64_t query, kv;
};
constexpr Heads kHeads[] = {{4, 4}, {8, 2}, {5, 1}, {6, 3}, {9, 3}, {3, 1}, {2, 2}, {1, 1}};

/// The whole sequences, the same on every rank.
struct Problem {
  Problem(Heads heads, const NamedMask& mask, std::int64_t length)
      : heads(heads), mask(mask), length(length) {
    const auto numbers = [&](std::uint64_t key, std::int64_t width) {
      std::vector<double> all;
      for (std::int64_t i = 0; i < kSequences * length * width; ++i)
        all.push_back(1.5f * normal_at(key, static_cast<std::uint64_t>(i)));
      return all;
    };
    const std::int64_t query = heads.query * kHeadSize, kv = heads.kv * kHeadSize;
    inputs = {numbers(1, query), numbers(2, kv), numbers(3, kv), numbers(4, query)};
    for (std::int64_t p = 0; p < length; ++p) positions.push_back(static_cast<std::int32_t>(p));
    for (std::int64_t b = 0; mask.documents && b < kSequences; ++b)
      for (std::int32_t p : positions) documents.push_back(document(b, p));
    AttentionShape shape;
    shape.batch = kSequences, shape.queries = shape.keys = length;
    shape.heads = heads.query, shape.kv_heads = heads.kv, shape.head_size = kHeadSize;
    shape.query_positions = shape.key_positions = positions.data();
    if (mask.documents) shape.query_documents = shape.key_documents = documents.data();
    shape.mask = {mask.kind == MaskKind::kCausal, mask.window};
    shape.scale = 1.0f / std::sqrt(static_cast<float>(kHeadSize));
    expected = testing_support::attention_reference(shape, inputs);
  }

  static std::int32_t document(std::int64_t sequence, std::int32_t position) {
    return position < 0 ? 0 : (position + 4 * static_cast<std::int32_t>(sequence)) / 11;
  }

  /// Columns of a [B, length, width] tensor at `at` (sequences, positions); `padding` elsewhere.
  template <class T>
  static void append(const std::vector<double>& from, std::int64_t row, std::int64_t width,
                     double padding, bool is_padding, std::vector<T>& to) {
    for (std::int64_t c = 0; c < width; ++c)
      to.push_back(
          static_cast<T>(is_padding ? padding : from[static_cast<std::size_t>(row * width + c)]));
  }
  /// Tensors side by side at these positions of every sequence, as a rank holds them.
  template <class T>
  std::vector<T> slice(
      std::initializer_list<std::pair<const std::vector<double>*, std::int64_t>> parts,
      const std::vector<std::int32_t>& at, double padding) const {
    std::vector<T> result;
    for (std::int64_t b = 0; b < kSequences; ++b)
      for (std::int32_t p : at)
        for (const auto& [tensor, width] : parts)
          append(*tensor, b * length + p, width, padding, p < 0, result);
    return result;
  }

  Heads heads;
  NamedMask mask;
  std::int64_t length;
  AttentionInputs inputs;
  AttentionOutputs expected;
  std::vector<std::int32_t> positions, documents;
};

struct Result {
  std::vector<float> o, lse, dqkv;
  std::int64_t forward_bytes = 0, backward_bytes = 0;
};

std::vector<float> copied(View<const float> v) {
  return {v.begin(), v.end()};
}

/// `drop` what forward exchanged, as memory.keep=attention does.
Result run(const Problem& problem, AttentionSchemeKind scheme, const SequenceShards& shards,
           bool drop = false) {
  ModelConfig config;
  config.heads = problem.heads.query, config.kv_heads = problem.heads.kv;
  config.head_size = kHeadSize;
  const Attention attention(config, {problem.mask.kind, problem.mask.window, scheme},
                            cpu_backend());
  MicroBatch batch;
  batch.sequences = kSequences;
  PassContext pass{shards, batch, false, {}};
  for (int r = 0; problem.mask.documents && r < shards.ranks(); ++r) {
    auto& theirs = pass.documents.emplace_back();
    for (std::int64_t b = 0; b < kSequences; ++b)
      for (std::int32_t p : shards.positions[static_cast<std::size_t>(r)])
        theirs.push_back(Problem::document(b, p));
  }
  const std::int64_t query = problem.heads.query * kHeadSize, kv = problem.heads.kv * kHeadSize;
  const AttentionInputs& in = problem.inputs;
  // Padding holds numbers that would show if anybody read them.
  auto qkv = problem.slice<float>({{&in.q, query}, {&in.k, kv}, {&in.v, kv}}, shards.mine(), 3.0);
  auto dout = problem.slice<float>({{&in.dout, query}}, shards.mine(), 5.0);
  const View<const float> qkv_view(qkv.data(), pass.rows(), query + 2 * kv);
  const auto sent = [&] { return shards.bytes_sent(); };

  Result result;
  Attention::Saved saved;
  const std::int64_t before = sent();
  attention.forward(qkv_view, saved, pass);
  result.forward_bytes = sent() - before;
  if (drop) saved.exchanged.reset();
  std::vector<float> dqkv(qkv.size(), std::nanf(""));
  attention.backward({dout.data(), pass.rows(), query},
                     saved.exchanged ? View<const float>() : qkv_view, saved,
                     {dqkv.data(), pass.rows(), query + 2 * kv}, pass);
  result.backward_bytes = sent() - before - result.forward_bytes;
  result.o = copied(saved.output_NHK);
  result.lse = copied(saved.lse);
  result.dqkv = dqkv;
  return result;
}

/// Log-sum-exp as AttentionSaved describes it.
std::vector<double> expected_lse(const Problem& problem, AttentionSchemeKind scheme,
                                 const SequenceShards& shards) {
  // The ranks that share heads, and this one's place among them.
  const int ranks = shards.ranks() == 1                       ? 1
                    : scheme == AttentionSchemeKind::kUlysses ? shards.ranks()
                    : scheme == AttentionSchemeKind::kHybrid  ? shards.inner->size()
                                                              : 1;
  const int index = shards.index % ranks;
  const std::int64_t heads = problem.heads.query;
  const std::int64_t first = part_begin(heads, index, ranks);
  const std::int64_t end = part_begin(heads, index + 1, ranks);
  std::vector<std::int32_t> at;
  for (int r = shards.index - index; r < shards.index - index + ranks; ++r) {
    const auto& theirs = shards.positions[static_cast<std::size_t>(r)];
    at.insert(at.end(), theirs.begin(), theirs.end());
  }
  std::vector<double> all;
  for (std::int64_t b = 0; b < kSequences; ++b)
    for (std::int64_t h = first; h < end; ++h)
      for (std::int32_t p : at)
        all.push_back(
            p < 0 ? -std::numeric_limits<double>::infinity()
                  : problem.expected
                        .lse[static_cast<std::size_t>((b * heads + h) * problem.length + p)]);
  return all;
}

/// Columns [first, first + width) of rows.
std::vector<float> columns(const std::vector<float>& rows, std::int64_t row, std::int64_t first,
                           std::int64_t width) {
  std::vector<float> result;
  for (std::size_t at = 0; at < rows.size(); at += static_cast<std::size_t>(row))
    result.insert(result.end(), rows.begin() + static_cast<std::ptrdiff_t>(at) + first,
                  rows.begin() + static_cast<std::ptrdiff_t>(at) + first + width);
  return result;
}

bool is_right(const Problem& problem, AttentionSchemeKind scheme, const SequenceShards& shards,
              const Result& result) {
  const AttentionOutputs& e = problem.expected;
  const std::int64_t query = problem.heads.query * kHeadSize, kv = problem.heads.kv * kHeadSize;
  const auto near = [&](const char* name, const std::vector<float>& actual,
                        const std::vector<double>& whole, std::int64_t width) {
    const auto expected = problem.slice<double>({{&whole, width}}, shards.mine(), 0.0);
    // The first query of a causal sequence has no gradient but rounding: a rank with little else is
    // measured against its even share of the whole tensor.
    double squares = 0;
    for (double x : whole) squares += x * x;
    const double share = std::sqrt(squares / shards.ranks());
    const double error = actual.size() == expected.size()
                             ? testing_support::relative_error(actual, expected, share)
                             : std::nan("");
    EXPECT_LE(error, 2e-6) << name;
    return error <= 2e-6;
  };
  const std::int64_t row = query + 2 * kv;
  bool right = near("o", result.o, e.o, query);
  right = near("dq", columns(result.dqkv, row, 0, query), e.dq, query) && right;
  right = near("dk", columns(result.dqkv, row, query, kv), e.dk, kv) && right;
  right = near("dv", columns(result.dqkv, row, query + kv, kv), e.dv, kv) && right;
  const auto lse = expected_lse(problem, scheme, shards);
  return right && lse.size() == result.lse.size() &&
         testing_support::largest_error(result.lse, lse) <= 1e-5;
}

AttentionGeometry geometry_of(const Problem& problem) {
  return {problem.heads.query,
          problem.heads.kv,
          kHeadSize,
          {problem.mask.kind == MaskKind::kCausal, problem.mask.window},
          1.0f};
}

/// The largest inner group that is not the whole context group; 1 if there is none.
int inner_of(const AttentionGeometry& geometry, int ranks) {
  int inner = 1;
  for (int n = 2; n < ranks; ++n)
    if (ranks % n == 0 && even_heads(geometry, n)) inner = n;
  return inner;
}

/// Context groups of this many ranks, and the grids that hybrid makes of them.
class Grids {
 public:
  Grids() : world_(Communicator::world()), group_(make_mpi_group(world_)) {}
  SequenceShards shard(std::int64_t length, SequenceLayout layout) const {
    return shard_sequence(length, layout, group_.get());
  }
  /// False: these heads do not allow hybrid. Collective.
  bool split(SequenceShards& shards, const AttentionGeometry& geometry) {
    const int inner = inner_of(geometry, world_.size());
    if (inner == 1) return false;
    SequenceShards& made = made_[inner];
    if (!made.inner) split_context(made, world_, inner);
    shards.inner = made.inner, shards.outer = made.outer;
    return true;
  }

 private:
  Communicator world_;
  std::unique_ptr<ProcessGroup> group_;
  std::map<int, SequenceShards> made_;
};

AttentionTraffic traffic_of(const Problem& problem, AttentionSchemeKind scheme,
                            const SequenceShards& shards) {
  const SequenceSharing sharing{kSequences, problem.length, shards.ranks(),
                                shards.inner ? shards.inner->size() : 1};
  return attention_traffic(scheme, geometry_of(problem), sharing, shards.index);
}

template <class Case>
void for_all(Case run_case) {
  Grids grids;
  for (const NamedMask& mask : kMasks)
    for (const Heads heads : kHeads)
      for (const std::int64_t length : {3, 29, 40}) {  // ranks of padding alone; some; mostly none
        const Problem problem(heads, mask, length);
        for (const NamedScheme& scheme : kSchemes) {
          SCOPED_TRACE(std::string(scheme.name) + ", " + mask.name + ", " +
                       std::to_string(heads.query) + "/" + std::to_string(heads.kv) +
                       " heads, length " + std::to_string(length));
          SequenceShards shards = grids.shard(length, mask.layout);
          if (scheme.kind == AttentionSchemeKind::kHybrid &&
              !grids.split(shards, geometry_of(problem)))
            continue;
          run_case(problem, scheme.kind, shards);
        }
      }
}

TEST(AttentionSchemes, AgreeWithDenseAttentionInDoublePrecision) {
  for_all([](const Problem& problem, AttentionSchemeKind scheme, const SequenceShards& shards) {
    EXPECT_ALL_RANKS(is_right(problem, scheme, shards, run(problem, scheme, shards)));
  });
}

TEST(AttentionSchemes, SendWhatTheFormulasSayToTheByteAndTheSameBitsTwice) {
  for_all([](const Problem& problem, AttentionSchemeKind scheme, const SequenceShards& shards) {
    const Result result = run(problem, scheme, shards), again = run(problem, scheme, shards, true);
    EXPECT_ALL_RANKS(result.o == again.o && result.lse == again.lse && result.dqkv == again.dqkv);
    const NamedMask& mask = problem.mask;
    if (mask.layout != layout_for(mask.kind == MaskKind::kCausal, mask.window)) return;
    const AttentionTraffic bytes = traffic_of(problem, scheme, shards);
    EXPECT_ALL_RANKS(result.forward_bytes == bytes.forward);
    EXPECT_ALL_RANKS(result.backward_bytes == bytes.backward);
    EXPECT_ALL_RANKS(again.backward_bytes == bytes.backward + bytes.again);
  });
}

TEST(AttentionSchemes, NeedTheMemoryThatIsPredicted) {
  Grids grids;
  const auto world = Communicator::world();
  testing_support::Variant v = testing_support::variants()[1];
  v.config.layers = 3, v.config.mlp_width = 16;  // so that attention, not the MLP, needs the most
  const std::int64_t length = 512 * world.size();
  testing_support::TinyBatch data(1, length, v.config.vocabulary, 1);
  // A window of a shard, of several, none.
  for (const std::int64_t window : {64, 600, 1200, 0})
    for (const NamedScheme& scheme : kSchemes)
      for (const Keep keep : {Keep::kAll, Keep::kAttention, Keep::kBlock}) {
        // Of the schemes that do not look at the window, one quick case is enough.
        if (window != 64 && scheme.kind != AttentionSchemeKind::kRing) continue;
        v.attention.scheme = scheme.kind, v.attention.window = window;
        SequenceShards shards = grids.shard(length, layout_for(true, window));
        const AttentionGeometry geometry{
            v.config.heads, v.config.kv_heads, v.config.head_size, {true, window}, 1.0f};
        if (scheme.kind == AttentionSchemeKind::kHybrid && !grids.split(shards, geometry)) continue;
        const int inner = shards.inner ? shards.inner->size() : 1;
        const MicroBatch batch = data.slice(0, 1, shards.mine());
        MemoryConfig memory;
        memory.keep = keep, memory.loss_chunk = 64;
        const std::int64_t tokens = shards.tokens(), before = cpu_device().bytes_in_use();
        Transformer model(v.config, v.attention, memory, std::move(shards), cpu_backend());
        model.parameters().initialize(1);
        cpu_device().reset_peak();
        model.train(batch, 1.0f);
        const auto measured = static_cast<double>(cpu_device().peak_bytes() - before);
        const MemoryEstimate estimate = memory_estimate(
            v.config, memory, {1, tokens, world.size(), scheme.kind, {true, window}, inner});
        // No optimizer here: weights and gradients only.
        const auto predicted = static_cast<double>(estimate.total() - estimate.states / 2);
        // Shares of the heads may be uneven, and the prediction is for the largest.
        const double most = world.all_reduce_max(measured);
        SCOPED_TRACE(std::string(scheme.name) + " keep " + std::to_string(static_cast<int>(keep)) +
                     " window " + std::to_string(window));
        EXPECT_NEAR(most / predicted, 1.0, 0.05);
      }
}

TEST(AttentionSchemes, RecomputationThatKeepsAttentionSendsNothing) {
  Grids grids;
  const testing_support::Variant v = testing_support::variants()[1];
  for (const NamedScheme& scheme : kSchemes)
    for (const std::int64_t window : {0, 8}) {
      AttentionConfig attention = v.attention;
      attention.scheme = scheme.kind, attention.window = window;
      const AttentionGeometry geometry{
          v.config.heads, v.config.kv_heads, v.config.head_size, {true, window}, 1.0f};
      SequenceShards shards = grids.shard(29, layout_for(true, window));
      if (scheme.kind == AttentionSchemeKind::kHybrid && !grids.split(shards, geometry)) continue;
      const auto step_bytes = [&](Keep keep) {
        MemoryConfig memory;
        memory.keep = keep;
        Transformer model(v.config, attention, memory, shards, cpu_backend());
        model.parameters().initialize(3);
        testing_support::TinyBatch data(2, 29, v.config.vocabulary, 1);
        const std::int64_t before = shards.bytes_sent();
        model.train(data.slice(0, 2, shards.mine()), 1.0f);
        return shards.bytes_sent() - before;
      };
      const AttentionTraffic bytes = attention_traffic(
          scheme.kind, geometry, {2, 29, shards.ranks(), shards.inner ? shards.inner->size() : 1},
          shards.index);
      const std::int64_t all = step_bytes(Keep::kAll);
      SCOPED_TRACE(std::string(scheme.name) + " window " + std::to_string(window));
      EXPECT_ALL_RANKS(all == v.config.layers * bytes.total());
      EXPECT_ALL_RANKS(step_bytes(Keep::kAttention) == all + v.config.layers * bytes.again);
      EXPECT_ALL_RANKS(step_bytes(Keep::kBlock) == all + v.config.layers * bytes.forward);
    }
}

}  // namespace
}  // namespace longspan::model
