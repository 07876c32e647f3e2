// Backward attention on AMX. A task is that of attention_backward.cpp, and so is the order in which
// tasks add to the gradients; p, ds and dq have queries as columns.
#include <hwy/base.h>

#include <vector>

#include "model/kernels/cpu/attention_amx.hpp"

#if HWY_ARCH_X86_64
#include "model/kernels/cpu/attention_tiles.hpp"

LONGSPAN_AMX_BEGIN
namespace longspan::model::cpu {
namespace amx {
namespace {

/// Queries and dout are packed twice: as the right side of k q^T and v dout^T, and of ds^T q and
/// p^T dout; keys as the left side of k q^T and of k^T ds. dq: pieces of 32 queries with the
/// columns of query_of_column(). p and ds of a block are [keys, queries]; ds_pairs is that of one
/// piece for dq.
struct BackwardScratch {
  Bf16 *queries, *query_terms, *dout, *dout_terms, *keys, *keys_transposed, *values, *p, *ds,
      *ds_pairs;
  float *dq, *lse, *delta, *scores, *dp, *dk, *dv;
  BackwardScratch(Carver& carver, std::int64_t block_heads, std::int64_t head_size) {
    const Sizes sizes(head_size);
    const std::int64_t rows = block_heads * kQueryBlock;
    const auto take = [&](std::int64_t numbers) {
      return reinterpret_cast<Bf16*>(carver.take(numbers / 2));
    };
    queries = take(rows * sizes.terms);
    query_terms = take(rows * sizes.columns);
    dout = take(rows * sizes.terms);
    dout_terms = take(rows * sizes.columns);
    dq = carver.take(rows * sizes.columns);
    lse = carver.take(rows);
    delta = carver.take(rows);
    keys = take(kKeyGroup * sizes.terms);
    keys_transposed = take(kKeyGroup * sizes.columns);
    values = take(kKeyGroup * sizes.terms);
    p = take(kKeyGroup * kQueryBlock);
    ds = take(kKeyGroup * kQueryBlock);
    ds_pairs = take(kKeyGroup * kPiece);
    scores = carver.take(kKeyPanel * kPiece);
    dp = carver.take(kKeyPanel * kPiece);
    dk = carver.take(kKeyGroup * sizes.columns);
    dv = carver.take(kKeyGroup * sizes.columns);
  }
};

/// Packs the queries of one block of one head. A query without visible keys (lse = -inf) becomes
/// zeros, and its lse +inf, so that p = exp(s - lse) = 0.
void pack_queries(const AttentionBackwardArgs& args, float sign, std::int64_t batch,
                  std::int64_t head, std::int64_t block, std::int64_t rows, std::int64_t first_row,
                  const BackwardScratch& scratch) {
  const AttentionShape& shape = args.shape;
  const Sizes sizes(shape.head_size);
  const std::int64_t query = block * kQueryBlock,
                     statistic = (batch * shape.heads + head) * shape.queries + query;
  std::int32_t present[kQueryBlock];
  for (std::int64_t r = 0; r < kQueryBlock; ++r) {
    const bool sees = r < rows && args.lse[statistic + r] != -kInfinity;
    present[r] = sees ? 0 : -1;
    scratch.lse[first_row + r] = sees ? args.lse[statistic + r] : kInfinity;
    scratch.delta[first_row + r] = sees ? args.delta[statistic + r] : 0.0f;
  }
  const Rows q{args.q + batch * args.q_batch + query * args.q_row + head * shape.head_size,
               args.q_row,
               rows,
               shape.head_size,
               present,
               sign};
  const Rows dout{
      args.dout + batch * args.dout_batch + query * args.dout_row + head * shape.head_size,
      args.dout_row, rows, shape.head_size, present};
  pack_right_transposed(q, kQueryBlock, sizes.terms, scratch.queries + first_row * sizes.terms);
  pack_right(q, kQueryBlock, sizes.columns, scratch.query_terms + first_row * sizes.columns);
  pack_right_transposed(dout, kQueryBlock, sizes.terms, scratch.dout + first_row * sizes.terms);
  pack_right(dout, kQueryBlock, sizes.columns, scratch.dout_terms + first_row * sizes.columns);
}

/// p = exp(s - lse) and ds = p (dp - delta) of `keys` by 32 queries in bfloat16, as left
/// sides and (ds) in pairs of rows. factor: from scores to units of log2.
void softmax_backward(std::int64_t keys, float factor, const float* scores, const float* dp,
                      const float* lse, const float* delta, Bf16* p, Bf16* ds, Bf16* ds_pairs) {
  const __m512 factors = _mm512_set1_ps(factor);
  __m512 shift[2], deltas[2];
  for (int v = 0; v < 2; ++v) {
    shift[v] = _mm512_mul_ps(_mm512_load_ps(lse + v * kSide), _mm512_set1_ps(kLog2E));
    deltas[v] = _mm512_load_ps(delta + v * kSide);
  }
  for (std::int64_t k = 0; k < keys; k += 2) {
    __m512i rounded[2];
    for (int i = 0; i < 2; ++i) {
      __m512 probability[2], gradient[2];
      for (int v = 0; v < 2; ++v) {
        const std::int64_t at = (k + i) * kPiece + v * kSide;
        probability[v] = exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + at), factors, shift[v]));
        gradient[v] =
            _mm512_mul_ps(probability[v], _mm512_sub_ps(_mm512_load_ps(dp + at), deltas[v]));
      }
      const std::int64_t at = k / kSide * kSide * kQueryBlock + (k % kSide + i) * kTerms;
      _mm512_store_si512(p + at, round_both(probability[0], probability[1]));
      rounded[i] = round_both(gradient[0], gradient[1]);
      _mm512_store_si512(ds + at, rounded[i]);
    }
    Bf16* const to = ds_pairs + k / kTerms * 2 * kTile + k % kTerms * kSide;
    _mm512_store_si512(to, _mm512_unpacklo_epi16(rounded[0], rounded[1]));
    _mm512_store_si512(to + kTile, _mm512_unpackhi_epi16(rounded[0], rounded[1]));
  }
}

/// One block of one head against panels `run` of the packed group.
void backward_block(const MaskIndex& mask, std::int64_t batch, std::int64_t block,
                    std::int64_t group, PanelRun run, const TileRanges& ranges,
                    std::int64_t head_size, float factor, const BackwardScratch& scratch,
                    std::int64_t first_row, RowsAhead& ahead) {
  constexpr std::int64_t kPieces = kQueryBlock / kPiece;
  const Sizes sizes(head_size);
  const std::int64_t pieces = (mask.rows(block) + kPiece - 1) / kPiece,
                     steps = sizes.terms / kTerms;
  KeyRange seen[kPieces];
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    const KeyRange keys = seen[piece] = visible_keys(ranges, piece, mask.rows(block));
    const std::int64_t row = first_row + piece * kPiece;
    for (std::int64_t key = keys.first; key < keys.last; key += kKeyPanel) {
      const KeyRange part{key, std::min(key + kKeyPanel, keys.last)};
      const std::int64_t count = part.last - part.first,
                         at = (run.first * kKeyPanel + key) * sizes.terms;
      multiply<false>(count, kPiece, steps, {scratch.keys + at, kSide * sizes.terms, kTile},
                      {scratch.queries + row * sizes.terms, kSide * sizes.terms, kTile},
                      {scratch.scores, kPiece}, ahead);
      hide(mask, batch, block, group, run, piece, part, scratch.scores);
      multiply<false>(count, kPiece, steps, {scratch.values + at, kSide * sizes.terms, kTile},
                      {scratch.dout + row * sizes.terms, kSide * sizes.terms, kTile},
                      {scratch.dp, kPiece}, ahead);
      softmax_backward(count, factor, scratch.scores, scratch.dp, scratch.lse + row,
                       scratch.delta + row, scratch.p + key * kQueryBlock + piece * kTile,
                       scratch.ds + key * kQueryBlock + piece * kTile,
                       scratch.ds_pairs + (key - keys.first) * kPiece);
    }
    if (!keys.empty())
      multiply<true>(
          sizes.columns, kPiece, (keys.last - keys.first) / kTerms,
          {scratch.keys_transposed + (run.first * kKeyPanel + keys.first) * sizes.columns, kTile,
           kTerms * sizes.columns},
          {scratch.ds_pairs, kTile, 2 * kTile}, {scratch.dq + row * sizes.columns, kPiece}, ahead);
  }
  // Of every 32 keys only the pieces that see some of them.
  const auto sees = [&](std::int64_t piece, std::int64_t key) {
    return seen[piece].first <= key && key < seen[piece].last;
  };
  const std::int64_t keys = (run.last - run.first) * kKeyPanel;
  for (std::int64_t key = 0; key < keys; key += kTerms) {
    std::int64_t first = 0, last = pieces;
    while (first < last && !sees(first, key)) ++first;
    while (first < last && !sees(last - 1, key)) --last;
    if (first == last) continue;
    for (std::int64_t piece = first; piece < last; ++piece)  // between pieces that do
      if (!sees(piece, key))
        for (std::int64_t k = key; k < key + kTerms; k += kSide)
          for (Bf16* const to : {scratch.p, scratch.ds})
            std::fill_n(to + k * kQueryBlock + piece * kTile, kTile, Bf16{0});
    const std::int64_t from = key * kQueryBlock + first * kTile, row = first_row + first * kPiece,
                       to = (run.first * kKeyPanel + key) * sizes.columns;
    const std::int64_t next = kTerms * sizes.columns;
    multiply<true>(kTerms, sizes.columns, last - first,
                   {scratch.p + from, kSide * kQueryBlock, kTile},
                   {scratch.dout_terms + row * sizes.columns, kTile, next},
                   {scratch.dv + to, sizes.columns}, ahead);
    multiply<true>(kTerms, sizes.columns, last - first,
                   {scratch.ds + from, kSide * kQueryBlock, kTile},
                   {scratch.query_terms + row * sizes.columns, kTile, next},
                   {scratch.dk + to, sizes.columns}, ahead);
  }
}

void add_rows(std::int64_t rows, std::int64_t size, float factor, const float* from,
              std::int64_t from_row, float* to, std::int64_t to_row) {
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t d = 0; d < size; ++d) to[r * to_row + d] += factor * from[r * from_row + d];
}

}  // namespace
}  // namespace amx

std::int64_t amx_backward_scratch(std::int64_t block_heads, std::int64_t head_size) {
  Carver measure(nullptr);
  amx::BackwardScratch(measure, block_heads, head_size);
  return measure.used();
}

void amx_backward_task(const AttentionBackwardArgs& args, const MaskIndex& mask,
                       const OrderedTask& ordered, const OrderedTask* next, Turn& query_turn,
                       Turn& key_turn, float* memory) {
  using namespace amx;
  const AttentionShape& shape = args.shape;
  const AttentionTask& task = ordered.task;
  const std::int64_t heads = shape.heads / shape.kv_heads, head_size = shape.head_size;
  const std::int64_t blocks = task.last_block - task.first_block;
  const Sizes sizes(head_size);
  const Scale scale(shape.scale);
  Carver carver(memory);
  const BackwardScratch scratch(carver, blocks * heads, head_size);
  const TileRegisters tiles;
  alignas(64) float dq_factor[kPiece];
  std::fill_n(dq_factor, kPiece, shape.scale);

  const auto first_row = [&](std::int64_t block, std::int64_t head) {
    return ((block - task.first_block) * heads + head) * kQueryBlock;
  };
  // Where the first row of a block stands in the caller's tensor.
  const auto place = [&](const AttentionTask& of, std::int64_t block, std::int64_t row,
                         std::int64_t batch_size) {
    return of.batch * batch_size + block * kQueryBlock * row + of.kv_head * heads * head_size;
  };

  TileRanges ranges;
  RowsAhead ahead;
  const auto push_keys = [&](const AttentionTask& of, std::int64_t group) {
    const std::int64_t first = group * kKeyGroup,
                       at = of.batch * args.kv_batch + first * args.kv_row + of.kv_head * head_size;
    for (const float* from : {args.v, args.k})
      ahead.push(from + at, args.kv_row, std::min(kKeyGroup, shape.keys - first), head_size);
  };
  const auto push_queries = [&](const AttentionTask& of, std::int64_t block) {
    ahead.push(args.dout + place(of, block, args.dout_row, args.dout_batch), args.dout_row,
               mask.rows(block), heads * head_size);
    ahead.push(args.q + place(of, block, args.q_row, args.q_batch), args.q_row, mask.rows(block),
               heads * head_size);
  };
  // The group a block sees last, from the time its queries are packed.
  std::vector<std::int64_t> last_group(blocks, -1);
  for (std::int64_t group = task.first_group; group < task.last_group; ++group) {
    const std::int64_t first = group * kKeyGroup, keys = std::min(kKeyGroup, shape.keys - first),
                       padded = round_up(keys, kKeyPanel);
    const std::int64_t gradient =
        task.batch * args.dkv_batch + first * args.dkv_row + task.kv_head * head_size;
    bool packed = false;
    for (std::int64_t block = task.first_block; block < task.last_block; ++block) {
      const PanelRun run = mask.visible_run(task.batch, block, group);
      if (run.first == run.last) continue;
      if (!packed) {
        const std::int64_t at =
            task.batch * args.kv_batch + first * args.kv_row + task.kv_head * head_size;
        const std::int32_t* const positions = mask.key_positions() + first;
        const Rows k{args.k + at, args.kv_row, keys, head_size, positions};
        pack_left(k, padded, sizes.terms, scratch.keys);
        pack_left_transposed(k, padded, sizes.columns, scratch.keys_transposed);
        pack_left({args.v + at, args.kv_row, keys, head_size, positions}, padded, sizes.terms,
                  scratch.values);
        std::fill_n(scratch.dk, kKeyGroup * sizes.columns, 0.0f);
        std::fill_n(scratch.dv, kKeyGroup * sizes.columns, 0.0f);
        ahead.clear();
        if (group + 1 < task.last_group) {
          push_keys(task, group + 1);
        } else if (next) {
          push_queries(next->task, next->task.first_block);
          push_keys(next->task, next->task.first_group);
        }
        for (const float* to : {args.dv, args.dk})
          ahead.push(to + gradient, args.dkv_row, keys, head_size);
        packed = true;
      }
      mask.find_ranges(task.batch, block, group, run, ranges);
      std::int64_t& last = last_group[block - task.first_block];
      if (last < 0) {
        for (std::int64_t h = 0; h < heads; ++h)
          pack_queries(args, scale.sign, task.batch, task.kv_head * heads + h, block,
                       mask.rows(block), first_row(block, h), scratch);
        std::fill_n(scratch.dq + first_row(block, 0) * sizes.columns,
                    heads * kQueryBlock * sizes.columns, 0.0f);
        last = mask.last_visible_group(task.batch, block, block + 1, group, task.last_group);
      }
      const std::int64_t dq = place(task, block, args.dq_row, args.dq_batch);
      if (last == group) ahead.push(args.dq + dq, args.dq_row, mask.rows(block), heads * head_size);
      if (block + 1 < task.last_block && last_group[block + 1 - task.first_block] < 0)
        push_queries(task, block + 1);
      for (std::int64_t h = 0; h < heads; ++h)
        backward_block(mask, task.batch, block, group, run, ranges, head_size, scale.size * kLog2E,
                       scratch, first_row(block, h), ahead);
      if (last == group) {
        query_turn.wait_for(ordered.query_turn);
        for (std::int64_t h = 0; h < heads; ++h)
          for (std::int64_t row = 0; row < mask.rows(block); row += kPiece)
            store_transposed<true>(scratch.dq + (first_row(block, h) + row) * sizes.columns,
                                   sizes.columns, head_size, mask.rows(block) - row, dq_factor,
                                   args.dq + dq + row * args.dq_row + h * head_size, args.dq_row);
      }
    }
    if (!packed) continue;
    key_turn.wait_for(ordered.key_turn);
    add_rows(keys, head_size, scale.size, scratch.dk, sizes.columns, args.dk + gradient,
             args.dkv_row);
    add_rows(keys, head_size, 1.0f, scratch.dv, sizes.columns, args.dv + gradient, args.dkv_row);
  }
  query_turn.wait_for(ordered.query_turn);
  query_turn.next();
  key_turn.wait_for(ordered.key_turn);
  key_turn.next();
}

}  // namespace longspan::model::cpu
LONGSPAN_AMX_END
#else
namespace longspan::model::cpu {
std::int64_t amx_backward_scratch(std::int64_t, std::int64_t) {
  return 0;
}
void amx_backward_task(const AttentionBackwardArgs&, const MaskIndex&, const OrderedTask&,
                       const OrderedTask*, Turn&, Turn&, float*) {}
}  // namespace longspan::model::cpu
#endif
