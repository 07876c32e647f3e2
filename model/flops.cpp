#include "model/flops.hpp"

#include <algorithm>

#include "model/loss.hpp"

namespace longspan::model {
namespace {

std::int64_t block_matrix_weights(const ModelConfig& m) {
  const std::int64_t query = m.heads * m.head_size, kv = m.kv_heads * m.head_size;
  const std::int64_t mlp_matrices = m.mlp == MlpKind::kGelu ? 2 : 3;
  return m.width * (2 * query + 2 * kv) + mlp_matrices * m.width * m.mlp_width;
}

/// What one of `tensor` ranks holds: a part of the heads, the MLP and the vocabulary.
ModelConfig part_of_model(ModelConfig m, std::int64_t tensor) {
  m.heads /= tensor;
  m.kv_heads = std::max<std::int64_t>(1, m.kv_heads / tensor);
  m.mlp_width /= tensor;
  m.vocabulary /= tensor;
  return m;
}

/// Elements per token of a rank that a scheme of sharing sequences adds to what one rank alone has.
struct SchemeMemory {
  std::int64_t kept = 0;     ///< a layer, with everything kept
  std::int64_t at_work = 0;  ///< the most beside it in one layer's backward
};

SchemeMemory scheme_memory(const ModelConfig& m, const MemoryConfig& memory,
                           AttentionSchemeKind scheme, std::int64_t context) {
  const std::int64_t query = m.heads * m.head_size, kv = m.kv_heads * m.head_size;
  if (context == 1) return {};
  // Its own and everybody's keys and values, then everybody's gradients and the sum of its own.
  if (scheme == AttentionSchemeKind::kAllgather) return {0, 2 * kv * (2 * context + 1)};
  if (scheme != AttentionSchemeKind::kUlysses) return {0, 2 * 5 * kv};
  // A rank's share of the heads over all tokens: the largest share counts. All shares on this
  // rank's tokens: their sum, more than all heads where a key/value head is in several.
  std::int64_t most_heads = 0, most = 0, sum = 0;
  for (std::int64_t r = 0; r < context; ++r) {
    const std::int64_t first = part_begin(m.heads, r, context),
                       end = part_begin(m.heads, r + 1, context);
    const std::int64_t group = m.heads / m.kv_heads,
                       keys = end > first ? (end - 1) / group + 1 - first / group : 0;
    most_heads = std::max(most_heads, end - first);
    most = std::max(most, end - first + 2 * keys);
    sum += end - first + 2 * keys;
  }
  const std::int64_t exchanged = m.head_size * most * context,
                     exchange = exchanged + m.head_size * sum;
  const std::int64_t output_gradients = query + m.head_size * most_heads * context;
  // qkv travels again if what forward exchanged is gone.
  return {exchanged - query - 2 * kv,
          output_gradients + exchange + (memory.keep == Keep::kAttention ? exchange : 0)};
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

MemoryEstimate memory_estimate(const ModelConfig& m, const MemoryConfig& memory,
                               std::int64_t sequences, std::int64_t tokens,
                               AttentionSchemeKind scheme, int context, int tensor) {
  const ModelConfig part = part_of_model(m, tensor);
  const std::int64_t d = m.width, t = tensor;
  // Everything is counted per own row, of which there are 1/t of the context rank's: what a rank
  // has of all rows, with its part of the heads and the MLP, counts t times.
  const std::int64_t rows = sequences * tokens / t;
  const std::int64_t heads = t * part.heads, query = heads * m.head_size,
                     kv = t * part.kv_heads * m.head_size, product = t * part.mlp_width;
  const std::int64_t hidden = m.mlp == MlpKind::kGelu ? product : 2 * product;
  const std::int64_t norm_rows = m.norm == NormKind::kLayerNorm ? 4 : 2;
  const std::int64_t gathered = t == 1 ? 0 : t * d;
  // Per token: x | norm, qkv, x2, norm2, norm statistics, hidden, product | attention output,
  // log-sum-exp.
  const std::int64_t input = d, attention = query + heads;
  const SchemeMemory sharing = scheme_memory(part, memory, scheme, context);
  const std::int64_t inner = 3 * d + query + 2 * kv + norm_rows + hidden + product +
                             (memory.keep == Keep::kAttention ? 0 : t * sharing.kept);
  const std::int64_t kept = memory.keep == Keep::kAll         ? input + inner + attention
                            : memory.keep == Keep::kAttention ? input + attention
                                                              : input;
  const std::int64_t recomputed = memory.keep == Keep::kAll         ? 0
                                  : memory.keep == Keep::kAttention ? inner
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
  // Forward of the last layer: its output beside everything it made.
  const std::int64_t forward = d + (memory.keep == Keep::kAll ? 0 : recomputed) + 2 * gathered;
  const std::int64_t chunk = std::min(
      rows * t, memory.loss_chunk > 0 ? memory.loss_chunk : default_loss_chunk(part.vocabulary));
  const std::int64_t loss = rows * 3 * d + chunk * (part.vocabulary + (t == 1 ? 0 : d + 3 * t + 3));
  MemoryEstimate estimate;
  estimate.states = 16 * parameter_count(m, tensor);
  // Made once, and there all the time: the angles of a rank's tokens, or the positions of all.
  const std::int64_t tables = m.position == PositionKind::kRope         ? tokens * m.head_size
                              : m.position == PositionKind::kSinusoidal ? tokens * context * d
                                                                        : 0;
  estimate.activations = 4 * (rows * m.layers * kept + tables);
  estimate.transient = 4 * std::max({rows * backward, rows * forward, loss});
  return estimate;
}

}  // namespace longspan::model
