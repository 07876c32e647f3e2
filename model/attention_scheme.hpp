/// How attention over a sequence that several ranks share is computed: one interface, four
/// schemes. All give the same result up to rounding, for any number of ranks, heads and key/value
/// heads, any mask and padded lengths; each gives the same bits every time. They differ in what
/// travels and in what must be in memory (notes/long-sequences.md sections 3 and 4).
///
/// Elements (4 bytes) a rank sends a layer, P ranks, N rows on each:
///   ring       forward (P-1) * 2 N G K       backward (P-1) * 2 N G K + P * 2 N G K
///   ring with a window of W, contiguous layout, one sequence of T tokens on each rank:
///              forward 2 G K min(W-1, rows behind)   (full mask: and min(W-1, rows before))
///              backward the same + 2 G K times the rows it has received: min(W-1, rows before)
///              (full mask: and behind). Each row goes straight to the ranks that see it, nothing
///              goes further. "Behind" counts whole shards, "before" the tokens of this rank's
///              predecessors; padding does not travel.
///   allgather  forward (P-1) * 2 N G K       backward (P-1) * 4 N G K
///   ulysses    forward (P-1)/P * N K (2 H + 2 G)            if P divides G; its file has the rest
///              backward the same + (P-1)/P * N H (the rowsums), and + (P-1)/P * N K (H + 2 G) if
///              memory.keep=attention has dropped what forward exchanged
///   hybrid     ulysses with Pu for P, + ring with Pr ranks, Pu N rows on each, max(G / Pu, 1)
///              key/value heads, where P = Pu * Pr
/// attention_traffic.hpp has them as functions. Read next: attention_blocks.hpp,
/// attention_ring.cpp, attention_window.cpp, attention_allgather.cpp, attention_ulysses.cpp,
/// attention_hybrid.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "model/layer.hpp"

namespace longspan::model {

struct AttentionGeometry {
  std::int64_t heads = 0, kv_heads = 0, head_size = 0;
  AttentionMask mask;
  float scale = 0.0f;
  bool bf16 = false;  ///< queries, keys, values and the output's gradient are bfloat16 values

  std::int64_t query_width() const { return heads * head_size; }
  std::int64_t kv_width() const { return kv_heads * head_size; }  ///< of keys alone
};

/// What attention leaves for its backward pass.
struct AttentionSaved {
  Buffer<float> output_NHK;
  /// Log-sum-exp over the WHOLE sequence, natural logarithm, where backward needs it. Ring and
  /// allgather: [B, H, T] of this rank's tokens. Ulysses: [B, own heads, P * T], the tokens of rank
  /// 0, 1, ... one behind the other. Hybrid: likewise within the inner group.
  Buffer<float> lse;
  /// Ulysses and hybrid: queries, keys and values of the rank's own heads. With them backward does
  /// not read qkv; without them it exchanges qkv again. May be of size 0: a rank without a head.
  std::optional<Buffer<float>> exchanged;
};

/// Stateless. All calls are collective over pass.shards.group, which has at least two ranks.
class AttentionScheme {
 public:
  virtual ~AttentionScheme() = default;
  /// qkv: [N, (H + 2G) * K]. Writes saved.output_NHK, whose memory is there; makes the rest of
  /// `saved`.
  virtual void forward(View<const float> qkv, AttentionSaved& saved,
                       const PassContext& pass) const = 0;
  /// dqkv is written with `=`.
  virtual void backward(View<const float> dout_NHK, View<const float> qkv,
                        const AttentionSaved& saved, View<float> dqkv,
                        const PassContext& pass) const = 0;
};

/// Keys and values travel round the ring, one packed message a step, posted before the compute that
/// hides it; their gradients follow one step behind (Liu et al. 2023). With a window, the rows
/// within it go straight to the ranks that see them, and their gradients straight home.
std::unique_ptr<AttentionScheme> make_ring_attention(const AttentionGeometry&, Backend);
/// Keys and values of all ranks are gathered at once, hidden behind the rank's own block; their
/// gradients are summed in rank order (Llama 3: Grattafiori et al. 2024, section 3.3.2). Needs room
/// for the keys and values of the whole sequence.
std::unique_ptr<AttentionScheme> make_allgather_attention(const AttentionGeometry&, Backend);
/// Tokens are exchanged for heads: a rank attends over the whole sequence with its share of the
/// heads, as even as possible, and outputs go back to the tokens' ranks (DeepSpeed-Ulysses: Jacobs
/// et al. 2023). A key/value head goes to every rank that has one of its query heads; its gradients
/// are summed in rank order. With more ranks than heads some have nothing to compute.
std::unique_ptr<AttentionScheme> make_ulysses_attention(const AttentionGeometry&, Backend);
/// Ulysses inside groups of Pu consecutive ranks, the ring across them (USP: Fang & Zhao 2024).
/// Needs shards.inner and shards.outer of split_context(); Pu is a divisor that even_heads()
/// allows.
std::unique_ptr<AttentionScheme> make_hybrid_attention(const AttentionGeometry&, Backend);

/// Whether `ranks` ranks can each have equally many query heads that read equally many to each of
/// its key/value heads: what hybrid asks of its inner groups. Pure.
bool even_heads(const AttentionGeometry& geometry, int ranks);

/// `kind` resolved (attention_choice.hpp): auto is the ring.
std::unique_ptr<AttentionScheme> make_attention_scheme(AttentionSchemeKind kind,
                                                       const AttentionGeometry&, Backend);

}  // namespace longspan::model
