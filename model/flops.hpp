/// FLOPs and bytes by formula: the numerator of MFU, and what a run will need before it starts.
#pragma once

#include <cstdint>

#include "model/activation_plan.hpp"
#include "model/config.hpp"
#include "model/rank_share.hpp"

namespace longspan::model {

struct StepFlops {
  double linear = 0;     ///< 6 * weights in matrix products (output projection included) * tokens
  double attention = 0;  ///< 12 * visible pairs * heads * head size * layers: forward 4, backward 8
  double total() const { return linear + attention; }
};

/// Forward and backward of `sequences` whole sequences. Model FLOPs: no recomputation, neither of
/// activation checkpointing nor of the scores inside the attention backward (MFU as in Chowdhery et
/// al. 2022, app. B); causal pairs counted once, N(N+1)/2.
StepFlops model_flops(const ModelConfig& model, const AttentionConfig& attention,
                      std::int64_t sequences, std::int64_t sequence_length);

/// What `plan` computes a second time in the backward of these: 2 * weights * tokens of a layer
/// whose products are not kept (all but the MLP's last), 4 per visible pair and channel where the
/// attention is not kept either. model_flops() and these over the time is HFU.
double recomputed_flops(const ModelConfig& model, const AttentionConfig& attention,
                        const ActivationPlan& plan, std::int64_t sequences,
                        std::int64_t sequence_length);

/// Visible query-key pairs of one sequence.
double attention_pairs(const AttentionConfig& attention, std::int64_t sequence_length);

/// Of the whole model, or what one of `tensor` ranks holds of it.
std::int64_t parameter_count(const ModelConfig& model, int tensor = 1);

/// The model with one tensor rank's part of the heads, of the MLP's width and of the vocabulary.
ModelConfig part_of_model(ModelConfig model, std::int64_t tensor);

/// Bytes of one layer on one rank, after notes/long-sequences.md section 7: per token 2D + (2H
/// + 2G)K + H + F (GELU) or 2F (SwiGLU) elements are kept with keep = all, D + HK + H with
/// attention, D with block; 4 bytes each, but with bf16 2 where a product reads it (qkv, the MLP).
/// The MLP of the layer at work takes room for memory.mlp-chunk tokens unless it is kept.
struct LayerMemory {
  std::int64_t kept = 0;     ///< from its forward to its backward, its input included
  std::int64_t movable = 0;  ///< of these, what memory.offload moves out: the input, and with keep
                             ///< = attention the attention output and its log-sum-exp
  std::int64_t at_work = 0;  ///< the most beside the kept, in its forward or backward
};

/// Of what travels (notes section 4) the ring has five blocks of keys, values and their gradients
/// under way (through a window, up to six of the rows within it), allgather those of the whole
/// sequence, Ulysses what it exchanges, hybrid both. Tensor ranks keep their part of all that, and
/// while a layer works the rows of all of them that it gathers (parallel/tensor_parallel.hpp).
LayerMemory layer_memory(const ModelConfig& model, const MemoryConfig& memory, Keep keep,
                         const RankShare& share);

/// Bytes that memory.offload has elsewhere at the most; 0 without. `plan` as below.
std::int64_t offloaded_bytes(const ModelConfig& model, const MemoryConfig& memory,
                             const RankShare& share, const ActivationPlan& plan);

/// Bytes of weights, gradients, two optimizer moments, and with bf16 the rounded copy of the
/// weights, of a tensor rank's part of the model.
std::int64_t state_memory(const ModelConfig& model, const RankShare& share);

/// Bytes of whole units of weights and gradients that exist at moments of a step when the ranks
/// share these (sharding_memory.hpp); all 0 when they do not.
struct UnitMemory {
  std::int64_t block = 0;       ///< while a block is at work, but
  std::int64_t last_block = 0;  ///< while the last one is
  std::int64_t loss = 0;
  std::int64_t ends = 0;  ///< at the embedding's gradient
};
UnitMemory unit_memory(const ModelConfig& model, const RankShare& share);

/// Bytes of what goes with the tokens and is no layer's: tables of positions, the final norm's
/// statistics.
std::int64_t table_memory(const ModelConfig& model, const RankShare& share);

/// Bytes beside what the layers keep while the loss is worked out.
std::int64_t loss_memory(const ModelConfig& model, const MemoryConfig& memory,
                         const RankShare& share);

struct MemoryEstimate {
  /// Weights, gradients, two optimizer moments; with bf16 the rounded copy of the weights.
  std::int64_t states = 0;
  std::int64_t activations = 0;  ///< what all layers keep for the backward pass, files not counted
  std::int64_t transient = 0;    ///< what else exists at the moment of the most: one layer at work,
                                 ///< or the loss; less what layers keep that is gone by then
  std::int64_t staging = 0;      ///< the copy that a checkpoint is written from
  std::int64_t total() const { return states + activations + transient + staging; }
};

/// Bytes on one rank that trains by `plan`; without one, by memory.keep in every layer.
MemoryEstimate memory_estimate(const ModelConfig& model, const MemoryConfig& memory,
                               const RankShare& share, const ActivationPlan& plan = {});

}  // namespace longspan::model
