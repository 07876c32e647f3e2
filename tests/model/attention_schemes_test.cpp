// ranks: 1 2 3 4 5
// timeout: 120
/// Every way to share a sequence against dense attention in double precision, and what it sends
/// against the formulas of attention_scheme.hpp.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "model/attention.hpp"
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
                                    {"ulysses", AttentionSchemeKind::kUlysses}};

struct NamedMask {
  const char* name;
  MaskKind kind;
  std::int64_t window;
  bool documents;
  SequenceLayout layout;
};
const NamedMask kMasks[] = {
    {"causal", MaskKind::kCausal, 0, false, SequenceLayout::kZigzag},
    {"window", MaskKind::kCausal, 5, false, SequenceLayout::kZigzag},
    {"documents", MaskKind::kCausal, 0, true, SequenceLayout::kZigzag},
    {"full", MaskKind::kFull, 0, false, SequenceLayout::kContiguous},
    {"full window", MaskKind::kFull, 7, false, SequenceLayout::kZigzag},
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
  const auto sent = [&] { return shards.group ? shards.group->bytes_sent() : 0; };

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
  const bool by_heads = scheme == AttentionSchemeKind::kUlysses && shards.ranks() > 1;
  const std::int64_t heads = problem.heads.query, ranks = shards.ranks();
  const std::int64_t first = by_heads ? part_begin(heads, shards.index, ranks) : 0;
  const std::int64_t end = by_heads ? part_begin(heads, shards.index + 1, ranks) : heads;
  std::vector<std::int32_t> at = shards.mine();
  if (by_heads) {
    at.clear();
    for (const auto& theirs : shards.positions) at.insert(at.end(), theirs.begin(), theirs.end());
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

struct Bytes {
  std::int64_t forward, backward, again;  ///< again: what backward adds if `exchanged` is gone
};

/// notes/long-sequences.md section 4 with 4 bytes an element; Ulysses head by head.
Bytes expected_bytes(AttentionSchemeKind scheme, Heads heads, std::int64_t rows, int me,
                     int ranks) {
  const std::int64_t p = ranks, kv = rows * heads.kv * kHeadSize;
  if (ranks == 1) return {0, 0, 0};
  if (scheme == AttentionSchemeKind::kRing)
    return {4 * (p - 1) * 2 * kv, 4 * ((p - 1) * 2 * kv + p * 2 * kv), 0};
  if (scheme == AttentionSchemeKind::kAllgather)
    return {4 * (p - 1) * 2 * kv, 4 * (p - 1) * 4 * kv, 0};
  // Query heads, and the key/value heads that they read, of rank r.
  const auto queries = [&](int r) {
    return part_begin(heads.query, r + 1, ranks) - part_begin(heads.query, r, ranks);
  };
  const auto keys = [&](int r) {
    std::set<std::int64_t> read;
    for (std::int64_t h = 0; h < heads.query; ++h)
      if (h >= part_begin(heads.query, r, ranks) && h < part_begin(heads.query, r + 1, ranks))
        read.insert(h / (heads.query / heads.kv));
    return static_cast<std::int64_t>(read.size());
  };
  std::int64_t inputs = 0, douts = 0;  // heads, times the width of one
  for (int r = 0; r < ranks; ++r) {
    if (r == me) continue;
    inputs += queries(r) + 2 * keys(r);
    douts += queries(r);
  }
  const std::int64_t head = 4 * rows * kHeadSize;
  return {head * (inputs + (p - 1) * queries(me)),
          head * (douts + (p - 1) * (queries(me) + 2 * keys(me))) + 4 * rows * douts,
          head * inputs};
}

template <class Case>
void for_all(Case run_case) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  for (const NamedMask& mask : kMasks)
    for (const Heads heads : kHeads)
      for (const std::int64_t length : {3, 29, 40}) {  // ranks of padding alone; some; mostly none
        const Problem problem(heads, mask, length);
        const SequenceShards shards = shard_sequence(length, mask.layout, group.get());
        for (const NamedScheme& scheme : kSchemes) {
          SCOPED_TRACE(std::string(scheme.name) + ", " + mask.name + ", " +
                       std::to_string(heads.query) + "/" + std::to_string(heads.kv) +
                       " heads, length " + std::to_string(length));
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
    const Bytes bytes = expected_bytes(scheme, problem.heads, kSequences * shards.tokens(),
                                       shards.index, shards.ranks());
    EXPECT_ALL_RANKS(result.forward_bytes == bytes.forward);
    EXPECT_ALL_RANKS(result.backward_bytes == bytes.backward);
    EXPECT_ALL_RANKS(again.backward_bytes == bytes.backward + bytes.again);
    EXPECT_ALL_RANKS(result.o == again.o && result.lse == again.lse && result.dqkv == again.dqkv);
  });
}

TEST(AttentionSchemes, UlyssesSendsTheSectionFourVolumeWhereRanksDivideHeads) {
  const auto world = Communicator::world();
  const std::int64_t p = world.size(), rows = 12, h = 4 * p;
  const auto sent = [&](std::int64_t kv_heads) {
    return expected_bytes(AttentionSchemeKind::kUlysses, {h, kv_heads}, rows, world.rank(),
                          world.size());
  };
  // P divides G: (P-1)/P * n * (2d + 2dkv) both ways; backward also carries the rowsums.
  const std::int64_t d = h * kHeadSize, dkv = 2 * p * kHeadSize;
  EXPECT_EQ(sent(2 * p).forward, 4 * (p - 1) * rows * (2 * d + 2 * dkv) / p);
  EXPECT_EQ(sent(2 * p).backward,
            4 * (p - 1) * rows * (2 * d + 2 * dkv) / p + 4 * (p - 1) * rows * h / p);
  // One key/value head on all ranks: its traffic is P times that of one that is on one.
  EXPECT_EQ(sent(1).forward, 4 * (p - 1) * rows * (2 * d + 2 * p * kHeadSize) / p);
}

TEST(AttentionSchemes, NeedTheMemoryThatIsPredicted) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  testing_support::Variant v = testing_support::variants()[1];
  v.config.layers = 3, v.config.mlp_width = 16;  // so that attention, not the MLP, needs the most
  const std::int64_t length = 1024 * world.size();
  const SequenceShards shards = shard_sequence(length, SequenceLayout::kZigzag, group.get());
  v.attention.window = 64;  // quick; memory does not depend on it
  testing_support::TinyBatch data(1, length, v.config.vocabulary, 1);
  const MicroBatch batch = data.slice(0, 1, shards.mine());
  for (const NamedScheme& scheme : kSchemes)
    for (const Keep keep : {Keep::kAll, Keep::kAttention, Keep::kBlock}) {
      v.attention.scheme = scheme.kind;
      MemoryConfig memory;
      memory.keep = keep, memory.loss_chunk = 64;
      const std::int64_t before = cpu_device().bytes_in_use();
      Transformer model(v.config, v.attention, memory, shards, cpu_backend());
      model.parameters().initialize(1);
      cpu_device().reset_peak();
      model.train(batch, 1.0f);
      const auto measured = static_cast<double>(cpu_device().peak_bytes() - before);
      const MemoryEstimate estimate =
          memory_estimate(v.config, memory, 1, shards.tokens(), scheme.kind, world.size());
      // No optimizer here: weights and gradients only.
      const auto predicted = static_cast<double>(estimate.total() - estimate.states / 2);
      // Shares of the heads may be uneven, and the prediction is for the largest.
      const double most = world.all_reduce_max(measured);
      SCOPED_TRACE(std::string(scheme.name) + " keep " + std::to_string(static_cast<int>(keep)));
      EXPECT_NEAR(most / predicted, 1.0, 0.05);
    }
}

TEST(AttentionSchemes, RecomputationThatKeepsAttentionSendsNothing) {
  const auto world = Communicator::world();
  const auto group = make_mpi_group(world);
  testing_support::Variant v = testing_support::variants()[1];
  const SequenceShards shards = shard_sequence(29, SequenceLayout::kZigzag, group.get());
  for (const NamedScheme& scheme : kSchemes) {
    v.attention.scheme = scheme.kind;
    const auto step_bytes = [&](Keep keep) {
      MemoryConfig memory;
      memory.keep = keep;
      Transformer model(v.config, v.attention, memory, shards, cpu_backend());
      model.parameters().initialize(3);
      testing_support::TinyBatch data(2, 29, v.config.vocabulary, 1);
      const std::int64_t before = group->bytes_sent();
      model.train(data.slice(0, 2, shards.mine()), 1.0f);
      return group->bytes_sent() - before;
    };
    const Bytes bytes = expected_bytes(scheme.kind, {v.config.heads, v.config.kv_heads},
                                       2 * shards.tokens(), shards.index, shards.ranks());
    const std::int64_t all = step_bytes(Keep::kAll);
    SCOPED_TRACE(scheme.name);
    EXPECT_ALL_RANKS(all == v.config.layers * (bytes.forward + bytes.backward));
    EXPECT_ALL_RANKS(step_bytes(Keep::kAttention) == all + v.config.layers * bytes.again);
    EXPECT_ALL_RANKS(step_bytes(Keep::kBlock) == all + v.config.layers * bytes.forward);
  }
}

}  // namespace
}  // namespace longspan::model
