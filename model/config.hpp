/// Settings of the model, its attention, its memory and its optimizer. Names, units and help stand
/// once in launcher/options.cpp; a value of 0 that means "work it out" is resolved by resolve()
/// before anything is built.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace longspan::model {

enum class MlpKind { kGelu, kSwiglu };
enum class NormKind { kLayerNorm, kRmsNorm };
enum class PositionKind { kRope, kLearned, kSinusoidal, kNone };
enum class Precision { kFp32, kBf16 };
enum class MaskKind { kCausal, kFull };
enum class AttentionSchemeKind { kAuto, kRing, kAllgather, kUlysses, kHybrid };
/// What a layer keeps for backward; auto is a setting only, worked out before a model is built.
enum class Keep { kAll, kAttention, kBlock, kAuto };
enum class Offload { kNone, kFile, kHost };
enum class ScheduleKind { kCosine, kLinear, kConstant };
/// What the ranks with the same part of the weights share instead of each having all of it, each
/// including the one before: nothing, optimizer states, gradients, weights (ZeRO 1, 2, 3).
enum class OptimizerShard { kNone, kStates, kGradients, kParameters };

/// As settings write it.
const char* name_of(Precision precision);
const char* name_of(AttentionSchemeKind scheme);
const char* name_of(Keep keep);
const char* name_of(OptimizerShard shard);

struct ModelConfig {
  std::int64_t layers = 4;
  std::int64_t width = 256;
  std::int64_t heads = 4;
  std::int64_t kv_heads = 0;   ///< 0 = heads
  std::int64_t head_size = 0;  ///< 0 = width / heads
  MlpKind mlp = MlpKind::kSwiglu;
  std::int64_t mlp_width = 0;  ///< 0 = 4 * width (gelu), or 8/3 * width rounded up to 64 (swiglu)
  NormKind norm = NormKind::kRmsNorm;
  float norm_epsilon = 1e-5f;
  PositionKind position = PositionKind::kRope;
  double rope_theta = 10000.0;
  std::int64_t max_positions = 0;  ///< rows of the learned position table; 0 = data.sequence-length
  bool bias = false;               ///< biases in the linear layers (GPT-2 has them)
  bool tie_embeddings = true;
  float dropout = 0.0f;
  std::int64_t vocabulary = 0;  ///< 0 = the dataset's, rounded up to a multiple of 64
  Precision precision = Precision::kFp32;
};

struct AttentionConfig {
  MaskKind mask = MaskKind::kCausal;
  std::int64_t window = 0;  ///< tokens a query sees, itself included; 0 = all
  AttentionSchemeKind scheme =
      AttentionSchemeKind::kAuto;  ///< how ranks share a sequence (attention_choice.hpp)
};

struct MemoryConfig {
  Keep keep = Keep::kAll;
  std::int64_t loss_chunk = 0;  ///< tokens whose logits exist at a time; 0 = work it out
  std::int64_t mlp_chunk = 0;   ///< tokens in the MLP of a layer at a time; 0 = work it out
  std::int64_t budget = 0;      ///< bytes per rank that keep=auto may use; 0 = what the rank has
  Offload offload = Offload::kNone;
  std::string offload_directory;  ///< where offload=file writes; empty = the run directory
};

struct OptimizerConfig {
  double learning_rate = 3e-4;
  double minimum_learning_rate = 0.0;  ///< where cosine and linear end
  ScheduleKind schedule = ScheduleKind::kCosine;
  std::int64_t warmup_steps = 0;
  double weight_decay = 0.1;
  double clip = 1.0;  ///< bound of the global gradient norm; 0 = off
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  OptimizerShard shard = OptimizerShard::kNone;
};

}  // namespace longspan::model
