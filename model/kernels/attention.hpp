/// Blockwise softmax attention (FlashAttention: Dao et al. 2022, 2023) with masks given by global
/// positions, so that every sharding of the sequence is the same kernel: a rank's queries against
/// any block of keys. Nothing of size queries x keys ever exists. Read next: model/attention.hpp,
/// which shards it.
#pragma once

#include <cstdint>

namespace longspan::model {

/// Which keys a query sees. Key j is visible to query i iff
///   both positions are >= 0 (a negative position marks padding), and
///   documents are absent or equal, and
///   causal: 0 <= pos_i - pos_j, and window > 0: |pos_i - pos_j| < window.
struct AttentionMask {
  bool causal = true;
  std::int64_t window = 0;
};

/// What the host knows of the positions of a side's tokens: up to two runs that count up by one,
/// one behind the other, as contiguous and zigzag shards have them. Only a hint: kernels that serve
/// whole rectangles and triangles alone (cuDNN's) are used where it is given. It must be true.
struct PositionRuns {
  struct Run {
    std::int64_t first_position = 0, tokens = 0;  ///< no padding in it
  };
  int count = 0;  ///< 0: nothing is known
  Run run[2];     ///< tokens add up to the side's
};

/// q: [batch, queries, heads, head_size], k, v: [batch, keys, kv_heads, head_size], o like q; heads
/// is a multiple of kv_heads and query head h reads key head h / (heads / kv_heads). head_size: a
/// multiple of 4 up to 256 (tuned for 64 and 128). The last two dims are contiguous; *_row elements
/// lie between tokens (so q, k, v may be parts of one packed buffer) and *_batch between sequences.
/// lse: [batch, heads, queries].
struct AttentionShape {
  std::int64_t batch = 0, queries = 0, keys = 0, heads = 0, kv_heads = 0, head_size = 0;
  const std::int32_t* query_positions =
      nullptr;  ///< [queries], the same for every sequence of the batch
  const std::int32_t* key_positions = nullptr;    ///< [keys]
  const std::int32_t* query_documents = nullptr;  ///< [batch, queries], or null: one document
  const std::int32_t* key_documents = nullptr;    ///< [batch, keys], or null
  AttentionMask mask;
  float scale = 0.0f;  ///< usually 1 / sqrt(head_size)
  /// q, k, v and dout hold bf16 values, or may be rounded to them: products may run on matrix units
  /// in bf16, with fp32 sums (on the CPU: on AMX, where that is). False: exact products in fp32.
  bool bf16_operands = false;
  PositionRuns query_runs = {}, key_runs = {};  ///< hints, see above
};

/// o = softmax(scale q k^T) v, lse = log sum exp(scale q k^T) over the visible keys (natural
/// logarithm). A query with nothing to see gets o = 0 and lse = -inf. All accumulators are fp32.
///
/// Keys that come in several blocks, in any order, are one call each, all but the first with
/// `merge` and all but the last with `more`. Between the calls lives the state of the online
/// softmax (Milakov & Gimelshein 2018), as between the tiles of a single call: in `lse` the largest
/// score m times log2(e) (-inf: none yet), in `sum` l = sum exp(s - m), in `o` sum exp(s - m) v.
/// The last call alone divides by l and takes the logarithm, so the log-sum-exp, whose rounding
/// would otherwise weigh all earlier blocks anew with every block, is rounded once, however many
/// blocks there are.
struct AttentionForwardArgs {
  AttentionShape shape;
  const float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  std::int64_t q_row = 0, q_batch = 0, kv_row = 0, kv_batch = 0;
  float* o = nullptr;
  std::int64_t o_row = 0, o_batch = 0;
  float* lse = nullptr;
  float* sum = nullptr;  ///< [batch, heads, queries], needed with `merge` or `more`
  bool merge = false;    ///< go on from the (o, lse, sum) that a call with `more` has left
  bool more = false;     ///< leave (o, lse, sum) for the next block
};

/// With the GLOBAL o and lse of every query (over all keys, not only these): p = exp(s - lse),
/// delta = rowsum(dout * o), ds = p (dout v^T - delta);  dq += scale ds k,  dk += scale ds^T q,  dv
/// += p^T dout. All gradients ACCUMULATE, in fp32. delta: [batch, heads, queries], from
/// attention_delta. Strides of d* are those of the tensor they belong to. The same bits for the
/// same arguments and thread count: no atomics.
struct AttentionBackwardArgs {
  AttentionShape shape;
  const float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  std::int64_t q_row = 0, q_batch = 0, kv_row = 0, kv_batch = 0;
  const float* dout = nullptr;
  std::int64_t dout_row = 0, dout_batch = 0;
  const float* lse = nullptr;
  const float* delta = nullptr;
  float* dq = nullptr;
  std::int64_t dq_row = 0, dq_batch = 0;
  float* dk = nullptr;
  float* dv = nullptr;
  std::int64_t dkv_row = 0, dkv_batch = 0;
};

/// delta[b, h, i] = sum over head_size of dout[b, i, h] * o[b, i, h].
struct AttentionDeltaArgs {
  std::int64_t batch = 0, queries = 0, heads = 0, head_size = 0;
  const float* o = nullptr;
  std::int64_t o_row = 0, o_batch = 0;
  const float* dout = nullptr;
  std::int64_t dout_row = 0, dout_batch = 0;
  float* delta = nullptr;
};

/// Throws Error if the shape is outside the contract of AttentionShape.
void check_shape(const AttentionShape& shape);

/// Query-key pairs the mask leaves visible: the A of "4 A d FLOPs". Exact for any positions and
/// documents; of one sequence, the first of the batch.
std::int64_t visible_pairs(const AttentionShape& shape);

}  // namespace longspan::model
