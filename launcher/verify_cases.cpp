#include "launcher/verify_cases.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "model/attention_choice.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

using namespace model;

template <class List>
const auto& named(const List& list, std::string_view name, const char* what) {
  for (const auto& entry : list)
    if (entry.name == name) return entry;
  fail("verify: there is no {} '{}'", what, name);
}

struct Length {
  std::int64_t tokens;
  bool all_combinations;  ///< of heads, masks and precisions; else a few
};

/// Which lengths pad, not at all, a little, or so much that the last ranks hold nothing else.
std::vector<Length> lengths_of(int ranks, const VerifyScope& scope) {
  std::vector<Length> lengths = {{scope.tokens, true}};
  if (ranks == 1 || scope.extent == Extent::kQuick) return lengths;
  lengths.push_back({scope.tokens / (2 * ranks) * (2 * ranks), false});
  if (ranks > 2) {
    lengths.push_back({std::int64_t{ranks - 1} * (ranks - 1), false});  // contiguous shards
    lengths.push_back({ranks - 1, false});                              // and zigzag
  }
  return lengths;
}

int all_heads(const ModelConfig&, int) {
  return 1;
}
int heads_over_all(const ModelConfig&, int ranks) {
  return ranks;
}

int heads_over_some(const ModelConfig& config, int ranks) {
  const AttentionGeometry geometry = {config.heads, config.kv_heads, config.head_size, {}, 1.0f};
  const int inner = hybrid_inner(geometry, ranks, ranks);
  return inner > 1 ? inner : 0;
}

bool is_measured(const AttentionCase& what, bool all_combinations, Extent extent) {
  using enum MaskCase;
  if (what.ranks == 1 && (what.heads == HeadsCase::kFew || what.mask == kLongWindow)) return false;
  const bool fp32 = what.precision == Precision::kFp32, grouped = what.heads == HeadsCase::kGqa;
  const bool common = what.mask == kCausal || what.mask == kDocuments;
  if (!all_combinations) return fp32 && grouped && (what.mask == kCausal || what.mask == kFull);
  switch (extent) {
    case Extent::kQuick:
      return grouped && common && (fp32 || what.mask == kCausal);
    case Extent::kUsual:
      return fp32 || (grouped && (common || what.mask == kFull));
    case Extent::kFull:
      break;
  }
  return true;
}

/// The attention heads of the trained models, as one of `tensor` ranks sees them.
ModelConfig heads_of_tensor_rank(int tensor) {
  ModelConfig config = heads_config(HeadsCase::kGqa, tensor);
  config.heads /= tensor, config.kv_heads = std::max<std::int64_t>(1, config.kv_heads / tensor);
  return config;
}
bool heads_are_shared_by(int tensor) {
  return heads_config(HeadsCase::kGqa, tensor).heads % tensor == 0;
}

/// Of Extent::kQuick and kUsual.
bool is_trained(const TrainingLayout& layout, std::string_view model, Extent extent) {
  const bool common = model == "gpt2" || model == "llama";
  if (layout.shard != OptimizerShard::kNone) {
    // All ranks on one axis; tied weights on one, key/value heads of their own on the other.
    if (layout.tensor > 1 || (layout.data > 1 && layout.context > 1)) return false;
    // Two ranks show every mode; with more, the one that shares most.
    if ((extent == Extent::kQuick || layout.ranks() > 2) &&
        layout.shard != OptimizerShard::kParameters)
      return false;
    return model == (layout.context == 1 ? "gpt2" : "llama");
  }
  if (layout.tensor > 1)
    return common && (layout.context == 1 || layout.scheme == verified_schemes().front().name);
  // The others differ only in what ranks that share a sequence do.
  return common || (extent == Extent::kUsual && layout.data == 1);
}

}  // namespace

/// --- The lists. A new scheme, model or way to arrange ranks is one more line here.

const std::vector<VerifiedScheme>& verified_schemes() {
  static const std::vector<VerifiedScheme> all = {
      {"ring", AttentionSchemeKind::kRing, all_heads},
      {"allgather", AttentionSchemeKind::kAllgather, all_heads},
      {"ulysses", AttentionSchemeKind::kUlysses, heads_over_all},
      {"hybrid", AttentionSchemeKind::kHybrid, heads_over_some},
  };
  return all;
}

const std::vector<VerifiedModel>& verified_models() {
  static const std::vector<VerifiedModel> all = {
      {"gpt2", "GPT-2-like", true},
      {"llama", "Llama-like", true},
      {"window", "sliding window", true},
      {"llama-bf16", "Llama-like bf16", false},
  };
  return all;
}

/// Every factorisation into data x context x tensor, with every scheme where a sequence is shared;
/// then every way to share optimizer states over data x context, with the first scheme: how tokens
/// are attended to does not touch what becomes of the gradients.
std::vector<TrainingLayout> training_layouts(int ranks) {
  std::vector<TrainingLayout> layouts;
  const auto add_mesh = [&](int context, int tensor) {
    const int data = ranks / tensor / context;
    if (context == 1) layouts.push_back({data, 1, "", tensor});
    for (const VerifiedScheme& scheme : verified_schemes())
      if (context > 1 && scheme.inner(heads_of_tensor_rank(tensor), context) > 0)
        layouts.push_back({data, context, std::string(scheme.name), tensor});
  };
  for (int tensor = 1; tensor <= ranks; ++tensor) {
    if (ranks % tensor != 0 || !heads_are_shared_by(tensor)) continue;
    for (int context = 1; context <= ranks / tensor; ++context)
      if (ranks / tensor % context == 0) add_mesh(context, tensor);
  }
  const std::vector<TrainingLayout> meshes = layouts;
  for (TrainingLayout layout : meshes)
    for (const OptimizerShard shard :
         {OptimizerShard::kStates, OptimizerShard::kGradients, OptimizerShard::kParameters}) {
      layout.shard = shard;
      if (layout.data * layout.context > 1 &&
          (layout.context == 1 || layout.scheme == verified_schemes().front().name))
        layouts.push_back(layout);
    }
  return layouts;
}

std::vector<AttentionCase> attention_cases(int ranks, const VerifyScope& scope) {
  using enum MaskCase;
  std::vector<AttentionCase> cases;
  for (const VerifiedScheme& scheme : verified_schemes()) {
    // One rank has the whole sequence in order: there is no scheme and no layout.
    if (ranks == 1 && !cases.empty()) break;
    for (const Precision precision : {Precision::kFp32, Precision::kBf16})
      for (const MaskCase mask :
           {kCausal, kFull, kShortWindow, kLongWindow, kFullWindow, kDocuments})
        for (const SequenceLayout layout : {SequenceLayout::kZigzag, SequenceLayout::kContiguous})
          for (const HeadsCase heads : {HeadsCase::kMha, HeadsCase::kGqa, HeadsCase::kFew})
            for (const Length& length : lengths_of(ranks, scope)) {
              const AttentionCase what = {
                  ranks, std::string(scheme.name), layout, mask, heads, precision, length.tokens};
              if (ranks == 1 && layout == SequenceLayout::kZigzag) continue;
              if (scheme.inner(heads_config(heads, ranks), ranks) == 0) continue;
              if (is_measured(what, length.all_combinations, scope.extent)) cases.push_back(what);
            }
  }
  return cases;
}

std::vector<TrainingCase> training_cases(int ranks, const VerifyScope& scope) {
  std::vector<TrainingCase> cases;
  for (const TrainingLayout& layout : training_layouts(ranks))
    for (const VerifiedModel& model : verified_models()) {
      if (scope.extent != Extent::kFull && !is_trained(layout, model.name, scope.extent)) continue;
      for (const Keep keep : {Keep::kAll, Keep::kAttention, Keep::kBlock}) {
        // Less than all: one way to keep for each model, so that each is there with every layout.
        const Keep usual = model.name == "gpt2"     ? Keep::kBlock
                           : model.name == "window" ? Keep::kAll
                                                    : Keep::kAttention;
        if (scope.extent == Extent::kFull || keep == usual)
          cases.push_back({layout, keep, std::string(model.name)});
      }
    }
  return cases;
}

ModelConfig heads_config(HeadsCase heads, int ranks) {
  ModelConfig config;
  config.heads = heads == HeadsCase::kFew ? std::max(1, ranks - 1) : 4;
  config.kv_heads = heads == HeadsCase::kMha ? 4 : heads == HeadsCase::kGqa ? 2 : 1;
  config.head_size = 16;
  config.width = config.heads * config.head_size;
  return config;
}

SequenceShards split_for(const VerifiedScheme& scheme, const ModelConfig& config,
                         SequenceShards shards, const Communicator& context,
                         const MakeGroup& make_group) {
  const int inner = shards.ranks() == 1 ? 1 : scheme.inner(config, shards.ranks());
  if (inner > 1 && inner < shards.ranks()) split_context(shards, context, inner, make_group);
  return shards;
}

/// --- Names.

const VerifiedScheme& verified_scheme(std::string_view name) {
  return named(verified_schemes(), name, "scheme");
}
const VerifiedModel& verified_model(std::string_view name) {
  return named(verified_models(), name, "model");
}

std::string_view name_of(Extent extent) {
  return extent == Extent::kQuick ? "quick" : extent == Extent::kUsual ? "usual" : "full";
}

std::string_view name_of(MaskCase mask) {
  switch (mask) {
    case MaskCase::kCausal:
      return "causal";
    case MaskCase::kFull:
      return "full";
    case MaskCase::kShortWindow:
      return "window < shard";
    case MaskCase::kLongWindow:
      return "window > shard";
    case MaskCase::kFullWindow:
      return "full, window";
    case MaskCase::kDocuments:
      return "documents";
  }
  return "";
}

std::string_view name_of(HeadsCase heads) {
  return heads == HeadsCase::kMha ? "MHA" : heads == HeadsCase::kGqa ? "GQA" : "few";
}

std::string_view name_of(SequenceLayout layout) {
  return layout == SequenceLayout::kZigzag ? "zigzag" : "contiguous";
}

std::string to_string(const TrainingLayout& layout) {
  return fmt::format("{} x {} x {}{}{}", layout.data, layout.context, layout.tensor,
                     layout.scheme.empty() ? "" : " ", layout.scheme);
}

}  // namespace longspan::launcher
