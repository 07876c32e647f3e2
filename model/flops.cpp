#include "model/flops.hpp"

#include <algorithm>
#include <vector>

#include "model/attention_heads.hpp"
#include "model/attention_traffic.hpp"
#include "model/loss.hpp"
#include "model/sharding_memory.hpp"

namespace longspan::model {
namespace {

std::int64_t block_matrix_weights(const ModelConfig& m) {
  const std::int64_t query = m.heads * m.head_size, kv = m.kv_heads * m.head_size;
  const std::int64_t mlp_matrices = m.mlp == MlpKind::kGelu ? 2 : 3;
  return m.width * (2 * query + 2 * kv) + mlp_matrices * m.width * m.mlp_width;
}

/// Elements per token of a rank that a scheme of sharing sequences adds to what one rank alone has.
struct SchemeMemory {
  std::int64_t kept = 0;     ///< a layer, with everything kept
  std::int64_t at_work = 0;  ///< the most beside it in one layer's backward
};

/// Rows that the backward pass of the ring has under way at most: blocks of keys and values, of
/// their gradients, and of both on the wire.
std::int64_t rows_of_ring(const AttentionMask& mask, std::int64_t tokens, int ranks) {
  if (mask.window == 0) return 5 * tokens;
  std::int64_t most = 0;
  for (int me = 0; me < ranks; ++me) {
    // Incoming and outgoing rows of the exchanges, nearest first, with none before and behind.
    std::vector<std::int64_t> in{0}, out{0};
    for (int distance = 1; distance < ranks; ++distance) {
      const int from = (me + ranks - distance) % ranks, to = (me + distance) % ranks;
      in.push_back(rows_in_window(mask, ranks * tokens, tokens, from, me));
      out.push_back(rows_in_window(mask, ranks * tokens, tokens, me, to));
      if (in.back() + out.back() == 0) in.pop_back(), out.pop_back();
    }
    in.push_back(0), out.push_back(0);
    for (std::size_t i = 1; i + 1 < in.size(); ++i)
      most = std::max(most, 2 * in[i] + in[i + 1] + out[i + 1] + in[i - 1] + out[i - 1]);
  }
  return most;
}

SchemeMemory scheme_memory(const ModelConfig& m, const MemoryConfig& memory,
                           AttentionSchemeKind scheme, std::int64_t tokens, int context,
                           const AttentionMask& mask, int inner) {
  const std::int64_t query = m.heads * m.head_size, kv = m.kv_heads * m.head_size;
  if (context == 1) return {};
  // Its own and everybody's keys and values, then everybody's gradients and the sum of its own.
  if (scheme == AttentionSchemeKind::kAllgather) return {0, 2 * kv * (2 * context + 1)};
  const bool hybrid = scheme == AttentionSchemeKind::kHybrid;
  if (!hybrid && scheme != AttentionSchemeKind::kUlysses)
    return {0, 2 * kv * rows_of_ring(mask, tokens, context) / tokens};
  // A rank's share of the heads over all tokens of those it shares them with: the largest share
  // counts. All shares on this rank's tokens: their sum, more than all heads where a key/value head
  // is in several.
  const int ranks = hybrid ? inner : context;
  std::int64_t most_heads = 0, most_keys = 0, most = 0, sum = 0;
  for (int r = 0; r < ranks; ++r) {
    const HeadShare share = head_share({m.heads, m.kv_heads, m.head_size, mask, 1.0f}, r, ranks);
    most_heads = std::max(most_heads, share.count);
    most_keys = std::max(most_keys, share.kv_count);
    most = std::max(most, share.count + 2 * share.kv_count);
    sum += share.count + 2 * share.kv_count;
  }
  const std::int64_t exchanged = m.head_size * most * ranks,
                     exchange = exchanged + m.head_size * sum;
  const std::int64_t output_gradients = m.head_size * most_heads * ranks;
  const bool again = memory.keep == Keep::kAttention;
  // qkv travels again if what forward exchanged is gone. Hybrid has given back what it sent before
  // the ring begins.
  const std::int64_t at_work =
      hybrid ? output_gradients + exchange + (again ? exchanged : 0) +
                   2 * m.head_size * most_keys *
                       rows_of_ring(mask, ranks * tokens, context / ranks) / tokens
             : query + output_gradients + exchange + (again ? exchange : 0);
  return {exchanged - query - 2 * kv, at_work};
}

}  // namespace

double attention_pairs(const AttentionConfig& attention, std::int64_t n) {
  const double length = static_cast<double>(n);
  const double window = attention.window > 0
                            ? std::min<double>(static_cast<double>(attention.window), length)
                            : length;
  // Causal: query i sees min(i + 1, window) keys. Full: the same to both sides, itself once.
  const double causal = window * (window + 1) / 2 + (length - window) * window;
  return attention.mask == MaskKind::kCausal ? causal : 2 * causal - length;
}

std::int64_t parameter_count(const ModelConfig& m) {
  const std::int64_t query = m.heads * m.head_size, kv = m.kv_heads * m.head_size;
  const std::int64_t norm = m.norm == NormKind::kLayerNorm ? 2 * m.width : m.width;
  const std::int64_t up_biases = m.mlp == MlpKind::kGelu ? m.mlp_width : 2 * m.mlp_width;
  const std::int64_t biases = m.bias ? query + 2 * kv + m.width + up_biases + m.width : 0;
  const std::int64_t positions =
      m.position == PositionKind::kLearned ? m.max_positions * m.width : 0;
  return m.vocabulary * m.width * (m.tie_embeddings ? 1 : 2) + positions +
         m.layers * (block_matrix_weights(m) + 2 * norm + biases) + norm;
}

StepFlops model_flops(const ModelConfig& m, const AttentionConfig& attention,
                      std::int64_t sequences, std::int64_t length) {
  const double tokens = static_cast<double>(sequences * length);
  const double weights =
      static_cast<double>(m.layers * block_matrix_weights(m) + m.vocabulary * m.width);
  return {6.0 * weights * tokens, 12.0 * attention_pairs(attention, length) *
                                      static_cast<double>(sequences) *
                                      static_cast<double>(m.heads * m.head_size * m.layers)};
}

MemoryEstimate memory_estimate(const ModelConfig& m, const MemoryConfig& memory,
                               std::int64_t sequences, std::int64_t tokens,
                               AttentionSchemeKind scheme, int context, AttentionMask mask,
                               int inner_ranks, OptimizerShard shard, int owners) {
  const std::int64_t rows = sequences * tokens, d = m.width, query = m.heads * m.head_size,
                     kv = m.kv_heads * m.head_size;
  const std::int64_t hidden = m.mlp == MlpKind::kGelu ? m.mlp_width : 2 * m.mlp_width;
  const std::int64_t norm_rows = m.norm == NormKind::kLayerNorm ? 4 : 2;
  // Per token: x | norm, qkv, x2, norm2, norm statistics, hidden, product | attention output,
  // log-sum-exp.
  const std::int64_t input = d, attention = query + m.heads;
  const SchemeMemory sharing = scheme_memory(m, memory, scheme, tokens, context, mask, inner_ranks);
  const std::int64_t inner = 3 * d + query + 2 * kv + norm_rows + hidden + m.mlp_width +
                             (memory.keep == Keep::kAttention ? 0 : sharing.kept);
  const std::int64_t kept = memory.keep == Keep::kAll         ? input + inner + attention
                            : memory.keep == Keep::kAttention ? input + attention
                                                              : input;
  const std::int64_t recomputed = memory.keep == Keep::kAll         ? 0
                                  : memory.keep == Keep::kAttention ? inner
                                                                    : inner + attention;
  // Backward of one layer on top of the kept: the residual gradient and a branch's, then the widest
  // of its steps: the MLP's product gradient beside everything recomputed, or attention's gradients
  // once the MLP's buffers are gone.
  const std::int64_t drops = m.dropout > 0.0f ? d : 0;
  const std::int64_t mlp_step = recomputed + m.mlp_width;
  const std::int64_t mlp_buffers = hidden + m.mlp_width + 2 * d;
  const std::int64_t attention_step =
      recomputed - mlp_buffers + query + (query + 2 * kv) + m.heads + sharing.at_work;
  const std::int64_t backward = 2 * d + drops + std::max(mlp_step, attention_step);
  // Forward of the last layer: its output beside everything it made.
  const std::int64_t forward = d + (memory.keep == Keep::kAll ? 0 : recomputed);
  const std::int64_t chunk =
      std::min(rows, memory.loss_chunk > 0 ? memory.loss_chunk : default_loss_chunk(m.vocabulary));
  const std::int64_t loss = rows * 3 * d + chunk * m.vocabulary;
  MemoryEstimate estimate;
  const ShardingMemory units = sharding_memory(m, shard, owners);
  const std::int64_t all_kept = rows * m.layers * kept;
  estimate.states = 4 * units.states;
  estimate.activations = 4 * all_kept;
  // Units of shared weights and gradients come on top: of the last block, of those before it (the
  // last one's activations are gone then), and at the embedding (all are gone).
  estimate.transient =
      4 * std::max({rows * backward + units.last_backward,
                    rows * (backward - kept) + units.backward, rows * forward + units.forward,
                    loss + units.loss, rows * 2 * d + units.ends - all_kept});
  return estimate;
}

}  // namespace longspan::model
