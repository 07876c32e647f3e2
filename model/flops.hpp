/// FLOPs and bytes by formula: the numerator of MFU, and what a run will need before it starts.
#pragma once

#include <cstdint>

#include "model/config.hpp"

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

/// Visible query-key pairs of one sequence.
double attention_pairs(const AttentionConfig& attention, std::int64_t sequence_length);

/// Of the whole model, or what one of `tensor` ranks holds of it.
std::int64_t parameter_count(const ModelConfig& model, int tensor = 1);

struct MemoryEstimate {
  std::int64_t states = 0;  ///< weights, gradients, two optimizer moments
  /// What all layers keep for the backward pass, and the table of their positions.
  std::int64_t activations = 0;
  std::int64_t transient =
      0;  ///< the most that exists besides at one time: one layer at work, or the loss
  std::int64_t total() const { return states + activations + transient; }
};

/// Bytes on one rank that trains `sequences` sequences of which it holds `tokens` tokens each,
/// after notes/long-sequences.md section 7 in fp32: per token and layer 6D + 2GK + H + 2F (GELU) or
/// 3F (SwiGLU) elements with keep = all, D + HK + H with attention, D with block. `context` ranks
/// share a sequence by `scheme` (notes section 4 for what travels): the ring has five blocks of
/// keys, values and their gradients under way, allgather those of the whole sequence, Ulysses what
/// it exchanges. With one rank the scheme does not matter. `tensor` ranks share the weights, and
/// the `tokens` between them: of what they keep each has its part, beside it the rows of all of
/// them that a layer gathers (parallel/tensor_parallel.hpp).
MemoryEstimate memory_estimate(const ModelConfig& model, const MemoryConfig& memory,
                               std::int64_t sequences, std::int64_t tokens,
                               AttentionSchemeKind scheme, int context, int tensor = 1);

}  // namespace longspan::model
