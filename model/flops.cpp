#include "model/flops.hpp"

#include <algorithm>
#include <vector>

#include "model/attention_heads.hpp"
#include "model/attention_traffic.hpp"
#include "model/kernels/cpu/gemm_amx.hpp"
#include "model/loss.hpp"
#include "model/mlp.hpp"
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
  // Rows come from ranks within `reach` only, on either side; ranks further than that from both
  // ends of the sequence are all alike.
  const auto reach = static_cast<int>(std::min<std::int64_t>(
      ranks, (mask.window + tokens - 1) / std::max<std::int64_t>(1, tokens) + 1));
  const int end = 2 * reach + 2;
  std::int64_t most = 0;
  for (int me = 0; me < ranks; ++me) {
    if (me > end && me < ranks - 1 - end) me = ranks - 1 - end;
    // Incoming and outgoing rows of the exchanges, nearest first, with none before and behind.
    std::vector<std::int64_t> in{0}, out{0};
    for (int distance = 1; distance < ranks; ++distance) {
      if (distance > reach && distance < ranks - reach) distance = ranks - reach;
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

/// Bytes of what is rounded and packed for the gradients of a weight [outputs, inputs] over `rows`
/// rows, in blocks of at most 4096 (linear.cpp): the block of dy, unless it is bfloat16 without
/// gaps already, and the operands as the two products pack them on AMX with two threads. (Without
/// AMX oneDNN packs x as a whole: up to 4 MiB more at a width of 512.)
std::int64_t rounded_bytes(std::int64_t rows, std::int64_t outputs, std::int64_t inputs,
                           bool dy_is_bf16 = false) {
  constexpr std::int64_t kBlock = 4096;
  constexpr int kThreads = 2;
  const auto even = [](std::int64_t total) {
    const std::int64_t blocks = std::max<std::int64_t>((total + kBlock - 1) / kBlock, 1);
    return (total + blocks - 1) / blocks;
  };
  const std::int64_t r = even(rows), o = even(outputs);
  const auto packed = [](std::int64_t m, std::int64_t n, std::int64_t k, bool turned) {
    if (m == 0 || n == 0 || k == 0) return std::int64_t{0};
    const cpu::AmxBlocks at_once(m, n, k, turned, kThreads);
    return at_once.right_numbers() + kThreads * at_once.left_numbers();
  };
  const std::int64_t block = dy_is_bf16 && o == outputs ? 0 : r * o;
  return 2 * (block + std::max(packed(o, inputs, r, true), packed(r, inputs, o, false)));
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

double recomputed_flops(const ModelConfig& m, const AttentionConfig& attention,
                        const ActivationPlan& plan, std::int64_t sequences, std::int64_t length) {
  // The MLP's way out only makes the next layer's input, which is kept.
  const std::int64_t weights = block_matrix_weights(m) - m.width * m.mlp_width;
  const double products =
      2.0 * static_cast<double>(weights) * static_cast<double>(sequences * length);
  const double scores = 4.0 * attention_pairs(attention, length) * static_cast<double>(sequences) *
                        static_cast<double>(m.heads * m.head_size);
  double again = 0;
  for (const Keep keep : plan.keep_L)
    again += keep == Keep::kAll ? 0.0 : keep == Keep::kAttention ? products : products + scores;
  return again;
}

std::int64_t state_memory(const ModelConfig& m, const RankShare& share) {
  const std::int64_t states =
      4 * sharding_memory(m, share.shard, share.owners, share.tensor).states;
  if (m.precision != Precision::kBf16 || share.shard == OptimizerShard::kParameters) return states;
  const std::int64_t looked_up =
      m.vocabulary / share.tensor * m.width +
      (m.position == PositionKind::kLearned ? m.max_positions * m.width : 0);
  return states + 2 * (parameter_count(m, share.tensor) - (m.tie_embeddings ? 0 : looked_up));
}

UnitMemory unit_memory(const ModelConfig& m, const RankShare& share) {
  const ShardingMemory units = sharding_memory(m, share.shard, share.owners, share.tensor);
  const bool copies = m.precision == Precision::kBf16 && share.shard == OptimizerShard::kParameters;
  // With bf16 a unit's rounded copy goes with it: at most of two blocks, or of one and the output.
  const std::int64_t copied = copies ? 2 * units.forward : 0;
  return {4 * std::max(units.backward, units.forward) + copied,
          4 * std::max(units.last_backward, units.forward) + copied, 4 * units.loss + copied,
          4 * units.ends + copied};
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
  // One rank: the losses of all rows. With tensor ranks the gathered rows of a chunk, and its
  // statistics, of this rank and of all.
  const std::int64_t beside =
      share.tensor == 1 ? share.rows() : chunk * (m.width + 3 * (1 + share.tensor));
  // The last layer's output, its norm and the norm's gradient.
  return 4 * (share.own_rows() * 3 * m.width + chunk * vocabulary + beside) +
         (m.precision == Precision::kBf16 ? rounded_bytes(chunk, vocabulary, m.width) : 0);
}

LayerMemory layer_memory(const ModelConfig& m, const MemoryConfig& memory, Keep keep,
                         const RankShare& share) {
  // Everything is counted per own row of the residual stream: what a tensor rank has of the rows of
  // all t ranks, with its part of the heads and of the MLP, counts t times.
  const std::int64_t t = share.tensor, rows = share.own_rows(), d = m.width;
  const ModelConfig part = part_of_model(m, t);
  const std::int64_t heads = t * part.heads, query = heads * m.head_size,
                     kv = t * part.kv_heads * m.head_size, qkv = query + 2 * kv,
                     hidden = (m.mlp == MlpKind::kGelu ? 1 : 2) * t * part.mlp_width;
  const std::int64_t norm_rows = m.norm == NormKind::kLayerNorm ? 4 : 2;
  const SchemeMemory sharing = scheme_memory(part, keep, share);
  const bool bf16 = m.precision == Precision::kBf16, all = keep == Keep::kAll,
             block = keep == Keep::kBlock;
  const bool exchanges = share.context > 1 && (share.scheme == AttentionSchemeKind::kUlysses ||
                                               share.scheme == AttentionSchemeKind::kHybrid);
  const std::int64_t size = bf16 ? 2 : 4;                // of what products read
  const std::int64_t gathered = t == 1 ? 0 : 4 * t * d;  // all ranks' rows of the stream
  // Bytes per token. What a layer may keep: its input; attention output and log-sum-exp; x2 and the
  // norms' statistics; qkv, or what was exchanged for it; the MLP's hidden numbers. A norm's output
  // is made again where it is read, with bf16 from fp32, or has been with all the rest.
  const std::int64_t input = 4 * d, attention = 4 * (query + heads);
  const std::int64_t norms = 4 * d + 4 * norm_rows + (all ? 0 : 2 * size * d);
  const std::int64_t normed = all ? size * d : 0, norming = all ? 4 * d + (bf16 ? 2 * d : 0) : 0;
  const std::int64_t kept_qkv = exchanges ? 4 * (qkv + t * sharing.kept) : size * qkv;
  const std::int64_t kept = input + (all     ? attention + norms + kept_qkv + size * hidden
                                     : block ? 0
                                             : attention);
  const std::int64_t at_work_qkv = 4 * (qkv + (keep == Keep::kAttention ? 0 : t * sharing.kept));
  const std::int64_t recomputed = all ? 0 : norms + at_work_qkv + (block ? attention : 0);

  // The sum over all rows that is a bias' gradient goes by at most 128 blocks of 16 rows or more.
  const auto bias_sums = [&](std::int64_t of_rows, std::int64_t outputs) {
    return m.bias ? 4 * std::min<std::int64_t>(128, (of_rows + 15) / 16) * outputs : 0;
  };
  // Backward of one layer on top of the kept: the residual gradient and a branch's, then the widest
  // of four steps. The MLP, a chunk of tokens at a time: the product and its gradient, what is
  // rounded of it, and hidden where it is not kept as fp32.
  const std::int64_t chunk =
      std::min(rows * t, memory.mlp_chunk > 0 ? memory.mlp_chunk : default_mlp_chunk(m));
  const std::int64_t part_product = part.mlp_width,
                     part_hidden = m.mlp == MlpKind::kGelu ? part_product : 2 * part_product;
  const std::int64_t made =
      (all && !bf16 ? 0 : 4 * part_hidden) + 4 * part_product + (bf16 ? 2 * part_product : 0);
  const std::int64_t rounded =
      bf16 ? std::max(
                 rounded_bytes(chunk, part_hidden, d, all && m.mlp == MlpKind::kSwiglu && !m.bias),
                 rounded_bytes(chunk, d, part_product))
           : 0;
  const std::int64_t mlp_step =
      std::max(rows * (recomputed + norming), rows * (recomputed + normed + 3 * gathered) +
                                                  chunk * (made + 4 * part_product) + rounded +
                                                  bias_sums(chunk, std::max(part_hidden, d)));
  // Attention's gradients, once the MLP's part and its norm's input are gone.
  const std::int64_t gone = 4 * d + (all ? size * hidden : size * d);
  const std::int64_t widened = all && !exchanges ? at_work_qkv - kept_qkv : 0;
  const std::int64_t attention_step =
      rows * (recomputed - gone + widened + 4 * (query + qkv + heads + t * sharing.at_work));
  // The ways out of attention, whose output is rounded in the product, and into it.
  const std::int64_t output_step =
      rows * (recomputed - gone + 4 * query + gathered) + bias_sums(rows * t, d) +
      (bf16 ? rounded_bytes(rows * t, d, query / t) +
                  2 * std::min<std::int64_t>(rows * t, 4096) * query / t
            : 0);
  const std::int64_t before_qkv =
      recomputed - gone - (all ? kept_qkv : at_work_qkv) - attention + 4 * qkv;
  const std::int64_t qkv_step =
      std::max(rows * (before_qkv + norming), rows * (before_qkv + normed + 2 * gathered) +
                                                  bias_sums(rows * t, qkv / t) +
                                                  (bf16 ? rounded_bytes(rows * t, qkv / t, d) : 0));
  const std::int64_t drops = m.dropout > 0.0f ? 4 * d : 0;
  const std::int64_t backward =
      rows * (8 * d + drops) + std::max({mlp_step, output_step, attention_step, qkv_step});

  // Forward of a layer: its output beside what attention made, or the MLP.
  const std::int64_t forward_attention =
      all ? 0 : size * d + 2 * norm_rows + at_work_qkv + (block ? attention : 0);
  const std::int64_t forward_norms =
      size * d + (all ? 0 : 4 * d + 2 * norm_rows + (block ? attention : 0));
  const std::int64_t forward_mlp = chunk * made;
  const std::int64_t forward =
      rows * 4 * d + std::max(rows * (forward_attention + gathered),
                              rows * (forward_norms + 2 * gathered) + forward_mlp);
  return {rows * kept, rows * (keep == Keep::kAttention ? input + attention : input),
          std::max(backward, forward)};
}

std::int64_t offloaded_bytes(const ModelConfig& m, const MemoryConfig& memory,
                             const RankShare& share, const ActivationPlan& plan) {
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i + 1 < plan.keep_L.size(); ++i)  // the last layer's stay
    if (memory.offload != Offload::kNone)
      bytes += layer_memory(m, memory, plan.keep_L[i], share).movable;
  return bytes;
}

MemoryEstimate memory_estimate(const ModelConfig& m, const MemoryConfig& memory,
                               const RankShare& share, const ActivationPlan& plan) {
  const ActivationPlan& used = plan.keep_L.empty() ? uniform_plan(memory.keep, m.layers) : plan;
  ActivationChain chain;
  MemoryEstimate estimate;
  const UnitMemory units = unit_memory(m, share);
  for (const Keep keep : used.keep_L) {
    const LayerMemory layer = layer_memory(m, memory, keep, share);
    const std::int64_t moved = memory.offload != Offload::kNone ? layer.movable : 0;
    const bool last = chain.options_L.size() + 1 == used.keep_L.size();
    chain.options_L.push_back({{keep, layer.kept - moved, moved,
                                layer.at_work + (last ? units.last_block : units.block), 0}});
    estimate.activations += layer.kept - moved;
  }
  chain.state_bytes = table_memory(m, share);
  chain.loss_bytes = loss_memory(m, memory, share) + units.loss;
  estimate.states = state_memory(m, share);
  estimate.staging = share.staging;
  const std::int64_t peak = peak_bytes(chain, std::vector<std::size_t>(chain.options_L.size(), 0));
  // At the embedding no activations are left, but units may be.
  const std::int64_t ends = chain.state_bytes + 8 * share.own_rows() * m.width + units.ends;
  estimate.transient = std::max(peak, ends) - estimate.activations;
  return estimate;
}

}  // namespace longspan::model
