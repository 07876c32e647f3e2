// Backward attention (Dao et al. 2022, algorithm 4, with the global log-sum-exp): five products per
// tile, in scratch that fits the second cache, but for the queries', which streams. A task is a
// chunk of queries against a chunk of keys and sums its shares of dq, dk and dv privately: dk and
// dv of a group of keys, dq of all its queries. Shares are added to the gradients in the order of
// the task list, which depends on the shape alone: a thread that is early waits for its turn. So
// few heads still occupy all threads, and the bits never vary.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "model/kernels/cpu/attention.hpp"
#include "model/kernels/cpu/attention_amx.hpp"
#include "model/kernels/cpu/attention_mask.hpp"
#include "model/kernels/cpu/attention_tasks.hpp"
#include "model/kernels/cpu/instruction_set.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels/cpu/attention_backward.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>
#include "model/kernels/cpu/attention_tile-inl.hpp"

#ifndef LONGSPAN_ATTENTION_BACKWARD_SHARED
#define LONGSPAN_ATTENTION_BACKWARD_SHARED
namespace longspan::model::cpu {

/// Rows as in ForwardScratch. q holds scale * q; keys and values are packed twice, as the right
/// side of q k^T and dout v^T and, keys only, of ds k.
struct BackwardScratch {
  float *q, *dout, *dq, *lse, *delta, *p, *ds, *keys_transposed, *values_transposed, *keys, *dk,
      *dv;
  BackwardScratch(Carver& carver, std::int64_t block_heads, std::int64_t head_size) {
    const std::int64_t rows = block_heads * kQueryBlock, size = row_size(head_size);
    q = carver.take(rows * size);
    dout = carver.take(rows * size);
    dq = carver.take(rows * size);
    lse = carver.take(rows);
    delta = carver.take(rows);
    p = carver.take(kQueryBlock * kScoreRow);
    ds = carver.take(kQueryBlock * kScoreRow);
    keys_transposed = carver.take(kKeyGroup * size);
    values_transposed = carver.take(kKeyGroup * size);
    keys = carver.take(kKeyGroup * size);
    // A run of panels ends up to 5 rows before its last register tile does.
    dk = carver.take((kKeyGroup + 5) * size);
    dv = carver.take((kKeyGroup + 5) * size);
  }
};

}  // namespace longspan::model::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace longspan::model::cpu::HWY_NAMESPACE {

inline void clear(std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = 0.0f;
}

/// Packs the queries of one block of one head. A query without visible keys (lse = -inf) becomes
/// zeros, and its lse +inf, so that p = exp(s - lse) = 0.
inline void pack_queries(const AttentionBackwardArgs& args, std::int64_t batch, std::int64_t head,
                         std::int64_t block, std::int64_t rows, std::int64_t first_row,
                         const BackwardScratch& scratch) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const AttentionShape& shape = args.shape;
  const std::int64_t size = row_size(shape.head_size), query = block * kQueryBlock;
  const float* const q =
      args.q + batch * args.q_batch + query * args.q_row + head * shape.head_size;
  const float* const dout =
      args.dout + batch * args.dout_batch + query * args.dout_row + head * shape.head_size;
  const std::int64_t statistic = (batch * shape.heads + head) * shape.queries + query;
  for (std::int64_t r = 0; r < kQueryBlock; ++r) {
    const std::int64_t row = first_row + r;
    const std::int64_t present = r < rows && args.lse[statistic + r] != -kInfinity ? 1 : 0;
    scratch.lse[row] = present ? args.lse[statistic + r] : kInfinity;
    scratch.delta[row] = present ? args.delta[statistic + r] : 0.0f;
    pack_rows(q + r * args.q_row, args.q_row, present, 1, shape.head_size, nullptr, shape.scale,
              scratch.q + row * size, size);
    pack_rows(dout + r * args.dout_row, args.dout_row, present, 1, shape.head_size, nullptr, 1.0f,
              scratch.dout + row * size, size);
  }
}

inline void pack_keys(const AttentionBackwardArgs& args, const MaskIndex& mask,
                      const AttentionTask& task, std::int64_t group,
                      const BackwardScratch& scratch) {
  const AttentionShape& shape = args.shape;
  const std::int64_t first = group * kKeyGroup, keys = std::min(kKeyGroup, shape.keys - first);
  const std::int64_t padded = (keys + kKeyPanel - 1) / kKeyPanel * kKeyPanel;
  const std::int64_t at =
      task.batch * args.kv_batch + first * args.kv_row + task.kv_head * shape.head_size;
  const std::int32_t* const positions = mask.key_positions() + first;
  pack_transposed(args.k + at, args.kv_row, keys, padded, shape.head_size, positions,
                  scratch.keys_transposed);
  pack_transposed(args.v + at, args.kv_row, keys, padded, shape.head_size, positions,
                  scratch.values_transposed);
  pack_rows(args.k + at, args.kv_row, keys, padded, shape.head_size, positions, 1.0f, scratch.keys,
            row_size(shape.head_size));
}

/// p = exp(s - lse) and ds = p (dp - delta), in place of s and dp, for keys [begin, end). s - lse
/// before the factor log2(e): the difference is nearly exact where p matters, however large the
/// logits are. The rest up to `keys`, and to the end of the last register tile of p^T and ds^T,
/// becomes zeros: it meets other queries there.
HWY_INLINE void softmax_backward_row(std::int64_t keys, std::int64_t begin, std::int64_t end,
                                     float lse, float delta, float* HWY_RESTRICT p,
                                     float* HWY_RESTRICT ds) {
  const FloatTag tag;
  const Floats all_lse = hn::Set(tag, lse), all_delta = hn::Set(tag, delta),
               log2e = hn::Set(tag, kLog2E);
  for (std::int64_t j = 0; j < begin; j += kLanes) {
    hn::Store(hn::Zero(tag), tag, p + j);
    hn::Store(hn::Zero(tag), tag, ds + j);
  }
#pragma GCC unroll 4
  for (std::int64_t j = begin; j < end; j += kLanes) {
    const Floats probability = exp2(hn::Mul(hn::Sub(hn::Load(tag, p + j), all_lse), log2e));
    hn::Store(probability, tag, p + j);
    hn::Store(hn::Mul(probability, hn::Sub(hn::Load(tag, ds + j), all_delta)), tag, ds + j);
  }
  for (std::int64_t j = end; j < keys || j % kStrip != 0; ++j) p[j] = ds[j] = 0.0f;
}

/// One block of one head against panels `run` of the packed group, whose rows of dk and dv start at
/// group_row.
inline void backward_block(const MaskIndex& mask, std::int64_t batch, std::int64_t block,
                           std::int64_t group, PanelRun run, const TileRanges& ranges,
                           std::int64_t head_size, const BackwardScratch& scratch,
                           std::int64_t first_row, RowsAhead& ahead) {
  const std::int64_t size = row_size(head_size), padded = padded_size(head_size),
                     rows = mask.rows(block);
  const std::int64_t first = run.first * kKeyPanel, keys = run.last * kKeyPanel - first;
  const float* const q = scratch.q + first_row * size;
  const float* const dout = scratch.dout + first_row * size;
  for (std::int64_t part = 0; part < rows; part += kScoreRows) {
    const std::int64_t count = std::min(kScoreRows, rows - part);
    const std::int16_t* const begin = ranges.key_begin + part / kStrip;
    const std::int16_t* const end = ranges.key_end + part / kStrip;
    float* const p = scratch.p + part * kScoreRow;
    float* const ds = scratch.ds + part * kScoreRow;
    multiply_visible(
        count, keys, head_size, {q + part * size, size, 1},
        {scratch.keys_transposed + first * head_size, kTileWidth, kTileWidth * head_size},
        {p, kScoreRow}, begin, end, ahead);
    mask_scores(mask, batch, block, group, run, ranges, part, count, p, kScoreRow);
    multiply_visible(
        count, keys, head_size, {dout + part * size, size, 1},
        {scratch.values_transposed + first * head_size, kTileWidth, kTileWidth * head_size},
        {ds, kScoreRow}, begin, end, ahead);
    for (std::int64_t r = 0; r < count; ++r)
      softmax_backward_row(keys, begin[r / kStrip], end[r / kStrip],
                           scratch.lse[first_row + part + r], scratch.delta[first_row + part + r],
                           p + r * kScoreRow, ds + r * kScoreRow);
  }
  multiply_add_visible(keys, padded, {scratch.p, 1, kScoreRow}, {dout, size, kTileWidth},
                       {scratch.dv + first * size, size}, ranges.row_begin, ranges.row_end, ahead);
  multiply_add_visible(keys, padded, {scratch.ds, 1, kScoreRow}, {q, size, kTileWidth},
                       {scratch.dk + first * size, size}, ranges.row_begin, ranges.row_end, ahead);
  multiply_add_visible(
      rows, padded, {scratch.ds, kScoreRow, 1}, {scratch.keys + first * size, size, kTileWidth},
      {scratch.dq + first_row * size, size}, ranges.key_begin, ranges.key_end, ahead);
}

inline void add_rows(std::int64_t rows, std::int64_t size, float factor,
                     const float* HWY_RESTRICT from, std::int64_t from_row, float* HWY_RESTRICT to,
                     std::int64_t to_row) {
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t d = 0; d < size; ++d) to[r * to_row + d] += factor * from[r * from_row + d];
}

/// Adds to dk and dv when a group is done, to dq when a block is, from the task's turn on. next:
/// what this thread does then, or null; its first rows are fetched in time.
void backward_task(const AttentionBackwardArgs& args, const MaskIndex& mask,
                   const OrderedTask& ordered, const OrderedTask* next, Turn& query_turn,
                   Turn& key_turn, float* memory) {
  const AttentionShape& shape = args.shape;
  const AttentionTask& task = ordered.task;
  const std::int64_t heads = shape.heads / shape.kv_heads, size = row_size(shape.head_size),
                     head_size = shape.head_size;
  const std::int64_t blocks = task.last_block - task.first_block;
  Carver carver(memory);
  const BackwardScratch scratch(carver, blocks * heads, head_size);
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
    const std::int64_t first = group * kKeyGroup, keys = std::min(kKeyGroup, shape.keys - first);
    const std::int64_t gradient =
        task.batch * args.dkv_batch + first * args.dkv_row + task.kv_head * head_size;
    bool packed = false;
    for (std::int64_t block = task.first_block; block < task.last_block; ++block) {
      const PanelRun run = mask.visible_run(task.batch, block, group);
      if (run.first == run.last) continue;
      if (!packed) {
        pack_keys(args, mask, task, group, scratch);
        clear(kKeyGroup * size, scratch.dk);
        clear(kKeyGroup * size, scratch.dv);
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
          pack_queries(args, task.batch, task.kv_head * heads + h, block, mask.rows(block),
                       first_row(block, h), scratch);
        clear(heads * kQueryBlock * size, scratch.dq + first_row(block, 0) * size);
        last = mask.last_visible_group(task.batch, block, block + 1, group, task.last_group);
      }
      const std::int64_t dq = place(task, block, args.dq_row, args.dq_batch);
      if (last == group) ahead.push(args.dq + dq, args.dq_row, mask.rows(block), heads * head_size);
      if (block + 1 < task.last_block && last_group[block + 1 - task.first_block] < 0)
        push_queries(task, block + 1);
      for (std::int64_t h = 0; h < heads; ++h)
        backward_block(mask, task.batch, block, group, run, ranges, head_size, scratch,
                       first_row(block, h), ahead);
      if (last == group) {
        query_turn.wait_for(ordered.query_turn);
        for (std::int64_t h = 0; h < heads; ++h)
          add_rows(mask.rows(block), head_size, shape.scale,
                   scratch.dq + first_row(block, h) * size, size, args.dq + dq + h * head_size,
                   args.dq_row);
      }
    }
    if (!packed) continue;
    key_turn.wait_for(ordered.key_turn);
    add_rows(keys, head_size, 1.0f, scratch.dk, size, args.dk + gradient, args.dkv_row);
    add_rows(keys, head_size, 1.0f, scratch.dv, size, args.dv + gradient, args.dkv_row);
  }
  query_turn.wait_for(ordered.query_turn);
  query_turn.next();
  key_turn.wait_for(ordered.key_turn);
  key_turn.next();
}

}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspan::model::cpu {
namespace {

struct Plan {
  std::int64_t blocks = 1, groups = 1;  ///< of a chunk
  std::int64_t query_chunks = 0, key_chunks = 0;
  std::vector<OrderedTask> tasks;
};

/// Chunks of at most 2048 row-heads (1024 for large heads) by as many keys, halved while there
/// would be few tasks; along diagonals, so that neighbours in the list share no chunk, and the main
/// one, of which a causal mask leaves half, last. A function of the shape and the mask, never of
/// the threads.
Plan make_plan(const AttentionShape& shape, const MaskIndex& mask) {
  Plan plan;
  const std::int64_t heads = shape.heads / shape.kv_heads, pairs = shape.batch * shape.kv_heads;
  // The number of chunks of at most `most`, and what each then needs to hold.
  const auto split = [](std::int64_t count, std::int64_t most, std::int64_t& each) {
    most = std::max<std::int64_t>(1, most);
    const std::int64_t chunks = (count + most - 1) / most;
    each = chunks ? (count + chunks - 1) / chunks : 1;
    return chunks;
  };
  for (std::int64_t rows = shape.head_size > 64 ? 1024 : 2048;; rows /= 2) {
    plan.query_chunks = split(mask.query_blocks(), rows / (kQueryBlock * heads), plan.blocks);
    plan.key_chunks = split(mask.key_groups(), rows / kKeyGroup, plan.groups);
    if (rows <= 256 || pairs * plan.query_chunks * plan.key_chunks >= 24) break;
  }
  std::vector<std::int32_t> query_turns(pairs * plan.query_chunks),
      key_turns(pairs * plan.key_chunks);
  const std::int64_t diagonals = std::max(plan.query_chunks, plan.key_chunks);
  for (std::int64_t step = 1; step <= diagonals; ++step) {
    for (std::int64_t at = 0; at < diagonals; ++at) {
      const std::int64_t shift = step % diagonals, i = (at + diagonals / 2) % diagonals,
                         j = (i + diagonals - shift) % diagonals;
      if (i >= plan.query_chunks || j >= plan.key_chunks) continue;
      for (std::int64_t b = 0; b < shape.batch; ++b) {
        AttentionTask task{b,
                           0,
                           i * plan.blocks,
                           std::min((i + 1) * plan.blocks, mask.query_blocks()),
                           j * plan.groups,
                           std::min((j + 1) * plan.groups, mask.key_groups())};
        if (mask.visible_tiles(b, task.first_block, task.last_block, task.first_group,
                               task.last_group) == 0)
          continue;
        task.last_group = mask.last_visible_group(b, task.first_block, task.last_block,
                                                  task.first_group, task.last_group) +
                          1;
        while (mask.visible_tiles(b, task.first_block, task.last_block, task.first_group,
                                  task.first_group + 1) == 0)
          ++task.first_group;
        for (task.kv_head = 0; task.kv_head < shape.kv_heads; ++task.kv_head) {
          const std::int64_t pair = b * shape.kv_heads + task.kv_head;
          const std::int64_t q = pair * plan.query_chunks + i, k = pair * plan.key_chunks + j;
          plan.tasks.push_back({task, q, k, query_turns[q]++, key_turns[k]++});
        }
      }
    }
  }
  return plan;
}

}  // namespace

HWY_EXPORT(backward_task);

void attention_backward(const AttentionBackwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const MaskIndex mask(shape);
  const Plan plan = make_plan(shape, mask);
  const auto count = static_cast<std::int64_t>(plan.tasks.size());
  if (count == 0) return;
  const std::int64_t threads = std::min<std::int64_t>(omp_get_max_threads(), count),
                     pairs = shape.batch * shape.kv_heads;
  const bool on_amx = shape.bf16_operands && uses_amx();
  const std::int64_t block_heads = plan.blocks * (shape.heads / shape.kv_heads);
  Carver measure(nullptr);
  BackwardScratch(measure, block_heads, shape.head_size);
  Scratch scratch(threads,
                  on_amx ? amx_backward_scratch(block_heads, shape.head_size) : measure.used());
  std::vector<Turn> query_turns(pairs * plan.query_chunks), key_turns(pairs * plan.key_chunks);
  // Tasks start in the order of the list, so the earliest unfinished one never waits: no deadlock.
  std::atomic<std::int64_t> next{0};
#pragma omp parallel num_threads(threads)
  {
    float* const memory = scratch.of(omp_get_thread_num());
    for (std::int64_t t = next++; t < count; t = next++) {
      const OrderedTask& ordered = plan.tasks[t];
      const OrderedTask* const soon = t + threads < count ? &plan.tasks[t + threads] : nullptr;
      Turn& query_turn = query_turns[ordered.query_chunk];
      Turn& key_turn = key_turns[ordered.key_chunk];
      if (on_amx)
        amx_backward_task(args, mask, ordered, soon, query_turn, key_turn, memory);
      else
        HWY_DYNAMIC_DISPATCH(backward_task)
      (args, mask, ordered, soon, query_turn, key_turn, memory);
    }
  }
}

}  // namespace longspan::model::cpu
#endif
