#include "model/flops.hpp"

#include <algorithm>
#include <vector>

#include "model/attention_heads.hpp"
#include "model/attention_traffic.hpp"
#include "model/loss.hpp"

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

SchemeMemory scheme_memory(const ModelConfig& m, Keep keep, const RankShare& share) {
  const int context = share.context;
  const std::int64_t tokens = share.tokens;
  const std::int64_t query = m.heads * m.head_size, kv = m.kv_heads * m.head_size;
  if (context == 1) return {};
  // Its own and everybody's keys and values, then everybody's gradients and the sum of its own.
  if (share.scheme == AttentionSchemeKind::kAllgather) return {0, 2 * kv * (2 * context + 1)};
  const bool hybrid = share.scheme == AttentionSchemeKind::kHybrid;
  if (!hybrid && share.scheme != AttentionSchemeKind::kUlysses)
    return {0, 2 * kv * rows_of_ring(share.mask, tokens, context) / tokens};
  // A rank's share of the heads over all tokens of those it shares them with: the largest share
  // counts. All shares on this rank's tokens: their sum, more than all heads where a key/value head
  // is in several.
  const int ranks = hybrid ? share.inner : context;
  std::int64_t most_heads = 0, most_keys = 0, most = 0, sum = 0;
  for (int r = 0; r < ranks; ++r) {
    const HeadShare heads =
        head_share({m.heads, m.kv_heads, m.head_size, share.mask, 1.0f}, r, ranks);
    most_heads = std::max(most_heads, heads.count);
    most_keys = std::max(most_keys, heads.kv_count);
    most = std::max(most, heads.count + 2 * heads.kv_count);
    sum += heads.count + 2 * heads.kv_count;
  }
  const std::int64_t exchanged = m.head_size * most * ranks,
                     exchange = exchanged + m.head_size * sum;
  const std::int64_t output_gradients = m.head_size * most_heads * ranks;
  const bool again = keep == Keep::kAttention;
  // qkv travels again if what forward exchanged is gone. Hybrid has given back what it sent before
  // the ring begins.
  const std::int64_t at_work =
      hybrid ? output_gradients + exchange + (again ? exchanged : 0) +
                   2 * m.head_size * most_keys *
                       rows_of_ring(share.mask, ranks * tokens, context / ranks) / tokens
             : query + output_gradients + exchange + (again ? exchange : 0);
  return {exchanged - query - 2 * kv, at_work};
}

}  // namespace

ModelConfig part_of_model(ModelConfig m, std::int64_t tensor) {
  m.heads /= tensor;
  m.kv_heads = std::max<std::int64_t>(1, m.kv_heads / tensor);
  m.mlp_width /= tensor;
  m.vocabulary /= tensor;
  return m;
}

double attention_pairs(const AttentionConfig& attention, std::int64_t n) {
  const double length = static_cast<double>(n);
  const double window = attention.window > 0
                            ? std::min<double>(static_cast<double>(attention.window), length)
                            : length;
  // Causal: query i sees min(i + 1, window) keys. Full: the same to both sides, itself once.
  const double causal = window * (window + 1) / 2 + (length - window) * window;
  return attention.mask == MaskKind::kCausal ? causal : 2 * causal - length;
}

std::int64_t parameter_count(const ModelConfig& model, int tensor) {
  const ModelConfig m = part_of_model(model, tensor);
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

std::int64_t state_memory(const ModelConfig& m, int tensor) {
  return 16 * parameter_count(m, tensor);
}

std::int64_t table_memory(const ModelConfig& m, const RankShare& share) {
  const std::int64_t statistics = m.norm == NormKind::kLayerNorm ? 2 : 1;
  // Sines and cosines of this rank's positions, or a row of the width for all positions.
  const std::int64_t positions = m.position == PositionKind::kRope ? share.tokens * m.head_size
                                 : m.position == PositionKind::kSinusoidal
                                     ? share.tokens * share.context * m.width
                                     : 0;
  return 4 * (positions + share.own_rows() * statistics);
}

std::int64_t loss_memory(const ModelConfig& m, const MemoryConfig& memory, const RankShare& share) {
  const std::int64_t vocabulary = m.vocabulary / share.tensor;
  const std::int64_t chunk = std::min(
      share.rows(), memory.loss_chunk > 0 ? memory.loss_chunk : default_loss_chunk(vocabulary));
  // With tensor ranks the gathered rows of a chunk, and its statistics, of this rank and of all.
  const std::int64_t gathered = share.tensor == 1 ? 1 : m.width + 3 * (1 + share.tensor);
  // The last layer's output, its norm and the norm's gradient.
  return 4 * (share.own_rows() * 3 * m.width + chunk * (vocabulary + gathered));
}

LayerMemory layer_memory(const ModelConfig& m, Keep keep, const RankShare& share) {
  // Everything is counted per own row of the residual stream: what a tensor rank has of the rows of
  // all t ranks, with its part of the heads and of the MLP, counts t times.
  const std::int64_t t = share.tensor, rows = share.own_rows(), d = m.width;
  const ModelConfig part = part_of_model(m, t);
  const std::int64_t heads = t * part.heads, query = heads * m.head_size,
                     kv = t * part.kv_heads * m.head_size, product = t * part.mlp_width;
  const std::int64_t hidden = m.mlp == MlpKind::kGelu ? product : 2 * product;
  const std::int64_t gathered = t == 1 ? 0 : t * d;
  const std::int64_t norm_rows = m.norm == NormKind::kLayerNorm ? 4 : 2;
  // Per token: x | norm, qkv, x2, norm2, norm statistics, hidden, product | attention output,
  // log-sum-exp.
  const std::int64_t input = d, attention = query + heads;
  const SchemeMemory sharing = scheme_memory(part, keep, share);
  const std::int64_t inner = 3 * d + query + 2 * kv + norm_rows + hidden + product +
                             (keep == Keep::kAttention ? 0 : t * sharing.kept);
  const std::int64_t kept = keep == Keep::kAll         ? input + inner + attention
                            : keep == Keep::kAttention ? input + attention
                                                       : input;
  const std::int64_t recomputed = keep == Keep::kAll         ? 0
                                  : keep == Keep::kAttention ? inner
                                                             : inner + attention;
  // Backward of one layer on top of the kept: the residual gradient and a branch's, then the widest
  // of its steps: the MLP's product gradient beside everything recomputed, or attention's gradients
  // once the MLP's buffers are gone, or the input projection's once attention's are.
  const std::int64_t drops = m.dropout > 0.0f ? d : 0;
  const std::int64_t mlp_step = recomputed + product + 3 * gathered;
  const std::int64_t mlp_buffers = hidden + product + 2 * d;
  const std::int64_t attention_step =
      recomputed - mlp_buffers + query + (query + 2 * kv) + heads + t * sharing.at_work;
  const std::int64_t projection_step = recomputed - mlp_buffers + 2 * gathered;
  const std::int64_t backward =
      2 * d + drops + std::max({mlp_step, attention_step, projection_step});
  // The sum over all rows that is a bias' gradient goes by at most 128 blocks of 16 rows or more.
  const std::int64_t bias_sums =
      m.bias ? std::min<std::int64_t>(128, (share.rows() + 15) / 16) * d : 0;
  // Forward: its output beside everything it made.
  const std::int64_t forward = d + recomputed + 2 * gathered;
  return {4 * rows * kept, 4 * rows * (keep == Keep::kAttention ? input + attention : input),
          4 * rows * std::max(backward, forward) + 4 * bias_sums};
}

std::int64_t offloaded_bytes(const ModelConfig& m, const MemoryConfig& memory,
                             const RankShare& share, const ActivationPlan& plan) {
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i + 1 < plan.keep_L.size(); ++i)  // the last layer's stay
    if (memory.offload == Offload::kFile) bytes += layer_memory(m, plan.keep_L[i], share).movable;
  return bytes;
}

MemoryEstimate memory_estimate(const ModelConfig& m, const MemoryConfig& memory,
                               const RankShare& share, const ActivationPlan& plan) {
  const ActivationPlan& used = plan.keep_L.empty() ? uniform_plan(memory.keep, m.layers) : plan;
  ActivationChain chain;
  MemoryEstimate estimate;
  for (const Keep keep : used.keep_L) {
    const LayerMemory layer = layer_memory(m, keep, share);
    const std::int64_t moved = memory.offload == Offload::kFile ? layer.movable : 0;
    chain.options_L.push_back({{keep, layer.kept - moved, moved, layer.at_work, 0}});
    estimate.activations += layer.kept - moved;
  }
  chain.state_bytes = table_memory(m, share);
  chain.loss_bytes = loss_memory(m, memory, share);
  estimate.states = state_memory(m, share.tensor);
  estimate.transient =
      peak_bytes(chain, std::vector<std::size_t>(chain.options_L.size(), 0)) - estimate.activations;
  return estimate;
}

}  // namespace longspan::model
