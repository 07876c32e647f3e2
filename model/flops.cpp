#include "model/flops.hpp"

#include <algorithm>

#include "model/loss.hpp"
#include "model/mlp.hpp"

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

/// Bytes of the rounded operands of a weight gradient [outputs, inputs] over `rows` rows, in blocks
/// of at most 4096 (linear.cpp): the block of dy, x as the product packs it, in strips of 64
/// columns, and the strip of dy that each thread turns, for two threads.
std::int64_t rounded_bytes(std::int64_t rows, std::int64_t outputs, std::int64_t inputs) {
  constexpr std::int64_t kBlock = 4096;
  constexpr std::int64_t kStrip = 64;
  const std::int64_t packed = (std::min(inputs, kBlock) + kStrip - 1) / kStrip * kStrip;
  return 2 * std::min(rows, kBlock) *
         (std::min(outputs, kBlock) + packed + 2 * std::min(outputs, kStrip));
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
                               AttentionSchemeKind scheme, int context) {
  const std::int64_t rows = sequences * tokens, d = m.width, query = m.heads * m.head_size,
                     kv = m.kv_heads * m.head_size, qkv = query + 2 * kv;
  const std::int64_t hidden = m.mlp == MlpKind::kGelu ? m.mlp_width : 2 * m.mlp_width;
  const std::int64_t norm_rows = m.norm == NormKind::kLayerNorm ? 4 : 2;
  const SchemeMemory sharing = scheme_memory(m, memory, scheme, context);
  const bool bf16 = m.precision == Precision::kBf16, all = memory.keep == Keep::kAll,
             block = memory.keep == Keep::kBlock;
  const bool exchanges = context > 1 && scheme == AttentionSchemeKind::kUlysses;
  const std::int64_t size = bf16 ? 2 : 4;  // of what products read
  // Bytes per token. What a layer may keep: its input; attention output and log-sum-exp; two norms,
  // x2 and the norms' statistics; qkv, or what was exchanged for it; the MLP's hidden and product.
  const std::int64_t input = 4 * d, attention = 4 * (query + m.heads);
  const std::int64_t norms = 2 * size * d + 4 * d + 4 * norm_rows;
  const std::int64_t kept_qkv = exchanges ? 4 * (qkv + sharing.kept) : size * qkv;
  const std::int64_t kept =
      input + (all     ? attention + norms + kept_qkv + size * (hidden + m.mlp_width)
               : block ? 0
                       : attention);
  const std::int64_t at_work_qkv = 4 * (qkv + (memory.keep == Keep::kAttention ? 0 : sharing.kept));
  const std::int64_t recomputed = all ? 0 : norms + at_work_qkv + (block ? attention : 0);

  // Backward of one layer on top of the kept: the residual gradient and a branch's, then the widest
  // of four steps. The MLP, a chunk of tokens at a time: the product's gradient, and where they
  // are not kept as fp32 hidden, product and what is rounded of them.
  const std::int64_t chunk =
      std::min(rows, memory.mlp_chunk > 0 ? memory.mlp_chunk : default_mlp_chunk(m));
  const std::int64_t halves = bf16 && !all ? 2 * m.mlp_width : 0;
  const std::int64_t made = (all && !bf16 ? 0 : 4 * hidden) + (all ? 0 : 4 * m.mlp_width) + halves;
  const std::int64_t rounded =
      bf16 ? std::max(rounded_bytes(chunk, hidden, d), rounded_bytes(chunk, d, m.mlp_width)) : 0;
  const std::int64_t mlp_step = rows * recomputed + chunk * (made + 4 * m.mlp_width) + rounded;
  // Attention's gradients, once the MLP's part and its norm's input are gone.
  const std::int64_t gone = size * d + 4 * d + (all ? size * (hidden + m.mlp_width) : 0);
  const std::int64_t widened = all && !exchanges ? at_work_qkv - kept_qkv : 0;
  const std::int64_t attention_step =
      rows * (recomputed - gone + widened + 4 * (query + qkv + m.heads + sharing.at_work));
  // The ways out of attention, whose output is rounded in the product, and into it.
  const std::int64_t output_step =
      rows * (recomputed - gone + 4 * query) +
      (bf16 ? rounded_bytes(rows, d, query) + 2 * std::min<std::int64_t>(rows, 4096) * query : 0);
  const std::int64_t qkv_step =
      rows * (recomputed - gone - (all ? kept_qkv : at_work_qkv) - attention + 4 * qkv) +
      (bf16 ? rounded_bytes(rows, qkv, d) : 0);
  const std::int64_t drops = m.dropout > 0.0f ? 4 * d : 0;
  const std::int64_t backward =
      rows * (8 * d + drops) + std::max({mlp_step, output_step, attention_step, qkv_step});

  // Forward of a layer: its output beside what attention made, or the MLP.
  const std::int64_t forward_attention =
      all ? 0 : size * d + 2 * norm_rows + at_work_qkv + (block ? attention : 0);
  const std::int64_t forward_norms =
      all ? 0 : size * d + 4 * d + 2 * norm_rows + (block ? attention : 0);
  const std::int64_t forward_mlp = all && !bf16 ? 0 : chunk * (4 * (hidden + m.mlp_width) + halves);
  const std::int64_t forward =
      rows * 4 * d + std::max(rows * forward_attention, rows * forward_norms + forward_mlp);
  const std::int64_t loss_chunk =
      std::min(rows, memory.loss_chunk > 0 ? memory.loss_chunk : default_loss_chunk(m.vocabulary));
  const std::int64_t loss = rows * 12 * d + loss_chunk * m.vocabulary * 4 +
                            (bf16 ? rounded_bytes(loss_chunk, m.vocabulary, d) : 0);
  MemoryEstimate estimate;
  estimate.states = 16 * parameter_count(m);
  if (bf16) {
    const std::int64_t looked_up =
        m.vocabulary * d + (m.position == PositionKind::kLearned ? m.max_positions * d : 0);
    estimate.states += 2 * (parameter_count(m) - (m.tie_embeddings ? 0 : looked_up));
  }
  estimate.activations = rows * m.layers * kept;
  estimate.transient = std::max({backward, forward, loss});
  return estimate;
}

}  // namespace longspan::model
