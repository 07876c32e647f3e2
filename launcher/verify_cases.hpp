/// The rows of `longspan verify`: which cases there are, and what is measured of each. Everything
/// that is listed stands here once: a new scheme, mesh axis or setting is one more line in one of
/// the lists of verify_cases.cpp. Read next: verify_attention.hpp and verify_training.hpp, which
/// measure them; verify.hpp, which judges them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.hpp"
#include "parallel/context_parallel.hpp"

namespace longspan::launcher {

/// kQuick: one case of every kind. kUsual: every scheme with every mask, layout, length and kind of
/// heads in fp32, a part of them in bf16, every mesh. kFull: all combinations.
enum class Extent { kQuick, kUsual, kFull };
std::string_view name_of(Extent extent);

/// How much is measured.
struct VerifyScope {
  std::int64_t tokens = 193;  ///< of an attention problem; odd, so that no rank count divides it
  Extent extent = Extent::kUsual;
  std::int64_t steps = 20;  ///< of a training run
};

/// A way to share a sequence, as it is verified.
struct VerifiedScheme {
  std::string_view name;  ///< as in attention.scheme
  model::AttentionSchemeKind kind;
  /// Of `ranks` ranks, how many neighbours share out the heads among them: 1 = every rank has all
  /// heads of its own tokens; 0 = the scheme does not serve such heads on so many ranks. Says where
  /// log-sum-exps lie (model::AttentionSaved).
  int (*inner)(const model::ModelConfig& config, int ranks);
};
const std::vector<VerifiedScheme>& verified_schemes();
/// Throws Error if there is none of that name.
const VerifiedScheme& verified_scheme(std::string_view name);

/// A shard is the number of tokens a rank holds; the windows reach over its borders.
enum class MaskCase {
  kCausal,
  kFull,
  kShortWindow,  ///< causal, shorter than a shard
  kLongWindow,   ///< causal, longer than a shard
  kFullWindow,   ///< keys on both sides, shorter than a shard
  kDocuments,    ///< causal, several documents in a sequence
};
enum class HeadsCase {
  kMha,  ///< 4 heads
  kGqa,  ///< 4 query heads, 2 key/value heads
  kFew,  ///< one query head fewer than ranks, one key/value head
};
std::string_view name_of(MaskCase mask);
std::string_view name_of(HeadsCase heads);
std::string_view name_of(SequenceLayout layout);

/// heads, kv_heads, head_size and width of an attention problem of `ranks` ranks.
model::ModelConfig heads_config(HeadsCase heads, int ranks);

struct AttentionCase {
  int ranks = 1;
  std::string scheme = "ring";  ///< one of verified_schemes()
  SequenceLayout layout = SequenceLayout::kContiguous;
  MaskCase mask = MaskCase::kCausal;
  HeadsCase heads = HeadsCase::kMha;
  model::Precision precision = model::Precision::kFp32;
  std::int64_t tokens = 0;
  bool operator==(const AttentionCase&) const = default;
};
/// Against the oracle. Relative L2 of output, dq, dk, dv; lse: largest absolute difference in fp32,
/// relative L2 in bf16; infinity where anything is NaN.
struct AttentionErrors {
  double output = 0, dq = 0, dk = 0, dv = 0, lse = 0;
  bool padding_is_silent = true;  ///< rows of padding: output and gradients 0, lse -inf
  /// Bit for bit on every rank: the gradients with what memory.keep=attention leaves, and with what
  /// memory.keep=block computes again, are those of memory.keep=all.
  bool keeps_agree = true;
  bool same_again = true;  ///< forward and backward once more gave the same bits on every rank
};
struct AttentionRow {
  AttentionCase what;
  AttentionErrors sharded, one_rank;
};

/// How the ranks of a training run are arranged.
struct TrainingLayout {
  int data = 1, context = 1;  ///< the mesh, with `tensor`
  std::string scheme;         ///< one of verified_schemes(); empty where context is 1
  int tensor = 1;
  model::OptimizerShard shard = model::OptimizerShard::kNone;  ///< over data x context
  int ranks() const { return data * context * tensor; }
  bool operator==(const TrainingLayout&) const = default;
};
/// The mesh, data x context x tensor: "2 x 2 x 1 ring", "4 x 1 x 1"
std::string to_string(const TrainingLayout& layout);

struct TrainingCase {
  TrainingLayout layout;
  model::Keep keep = model::Keep::kAll;
  std::string model;  ///< of verified_models()
  bool operator==(const TrainingCase&) const = default;
};
struct TrainingRow {
  TrainingCase what;
  double loss_difference = 0;      ///< largest |loss / loss of one rank - 1| over the steps
  double gradient_difference = 0;  ///< relative L2 of the first gradients to those of one rank
  bool same_as_keep_all = false;   ///< losses and weights, bit for bit, on every rank
  bool same_again = false;         ///< the same run once more, likewise
  /// A few steps of one micro-batch each: losses and weights, bit for bit, are those of
  /// optimizer.shard=none; true where there is nothing to compare.
  bool same_as_unsharded = true;
};

/// The models that are trained; training_problem() says what they are.
struct VerifiedModel {
  std::string_view name, shown;
  bool has_bounds;  ///< fp32: losses and gradients have bounds; bf16: only its bits
};
const std::vector<VerifiedModel>& verified_models();
const VerifiedModel& verified_model(std::string_view name);

/// `shards` with the inner and outer groups that schemes of two levels need for the heads of
/// `config`, those of one tensor rank: all of `context`, the communicator behind shards.group.
/// Collective over it.
SequenceShards split_for(const VerifiedScheme& scheme, const model::ModelConfig& config,
                         SequenceShards shards, const Communicator& context,
                         const MakeGroup& make_group = make_mpi_group);

/// The rows of one rank count, in the order of the tables. Pure.
std::vector<AttentionCase> attention_cases(int ranks, const VerifyScope& scope);
std::vector<TrainingLayout> training_layouts(int ranks);  ///< all of them, as for Extent::kFull
std::vector<TrainingCase> training_cases(int ranks, const VerifyScope& scope);

}  // namespace longspan::launcher
