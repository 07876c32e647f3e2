// Forward attention. A task owns some query blocks and walks the key groups they can see: each
// group is packed once, then meets every block: scores, online softmax (Milakov & Gimelshein 2018;
// Dao et al. 2022, algorithm 1), and the product with the values, in scratch that fits the second
// cache.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "model/kernels/cpu/attention.hpp"
#include "model/kernels/cpu/attention_amx.hpp"
#include "model/kernels/cpu/attention_mask.hpp"
#include "model/kernels/cpu/attention_tasks.hpp"
#include "model/kernels/cpu/instruction_set.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels/cpu/attention_forward.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>
#include "model/kernels/cpu/attention_tile-inl.hpp"

#ifndef LONGSPAN_ATTENTION_FORWARD_SHARED
#define LONGSPAN_ATTENTION_FORWARD_SHARED
namespace longspan::model::cpu {

/// One row-head is one query of one query head; a block of one head is kQueryBlock of them, the
/// last of them unused where the queries end. `maximum` is in units of log2, `sum` is one vector
/// per row, whose lanes are added at the end.
struct ForwardScratch {
  float *q, *result, *maximum, *sum, *scores, *keys, *values;
  ForwardScratch(Carver& carver, std::int64_t block_heads, std::int64_t head_size) {
    const std::int64_t rows = block_heads * kQueryBlock, size = row_size(head_size);
    q = carver.take(rows * size);
    result = carver.take(rows * size);
    maximum = carver.take(rows);
    sum = carver.take(rows * kWidestVector);
    scores = carver.take(kScoreRows * kScoreRow);
    keys = carver.take(kKeyGroup * size);
    values = carver.take(kKeyGroup * size);
  }
};

}  // namespace longspan::model::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace longspan::model::cpu::HWY_NAMESPACE {

/// The results of one block of one head in the caller's memory.
struct BlockResult {
  float *o, *lse, *sum;  ///< sum: null where the keys come in one block
};

/// Starts a block from nothing, or from what the keys before these have left.
inline void start_block(const AttentionForwardArgs& args, std::int64_t rows, BlockResult from,
                        std::int64_t size, float* result, float* maximum, float* sum) {
  const FloatTag tag;
  for (std::int64_t r = 0; r < kQueryBlock; ++r) {
    // Not the maximum: a query with a NaN has none, and its NaN must stay.
    const bool merged = args.merge && r < rows && from.sum[r] != 0.0f;
    pack_rows(from.o + r * args.o_row, args.o_row, merged ? 1 : 0, 1, args.shape.head_size, nullptr,
              1.0f, result + r * size, size);
    maximum[r] = merged ? from.lse[r] : -std::numeric_limits<float>::infinity();
    hn::Store(hn::Zero(tag), tag, sum + r * kLanes);
    if (merged) sum[r * kLanes] = from.sum[r];
  }
}

/// Scores of one row become exp2(scores - maximum) after the maximum, and with it sum and result,
/// were brought up to date. keys: a multiple of kKeyChunk.
HWY_INLINE void softmax_row(std::int64_t keys, float* HWY_RESTRICT scores,
                            float* HWY_RESTRICT maximum, float* HWY_RESTRICT sum,
                            float* HWY_RESTRICT result, std::int64_t size) {
  const FloatTag tag;
  const std::int64_t whole = keys - keys % (4 * kLanes);
  Floats top[4];
  for (std::int64_t v = 0; v < 4; ++v)
    top[v] = hn::Set(tag, -std::numeric_limits<float>::infinity());
  for (std::int64_t j = 0; j < whole; j += 4 * kLanes)
    for (std::int64_t v = 0; v < 4; ++v)
      top[v] = hn::Max(top[v], hn::Load(tag, scores + j + v * kLanes));
  for (std::int64_t j = whole; j < keys; j += kLanes)
    top[0] = hn::Max(top[0], hn::Load(tag, scores + j));
  const Floats top_all = hn::Max(hn::Max(top[0], top[1]), hn::Max(top[2], top[3]));
  const Floats log2e = hn::Set(tag, kLog2E);
  // After the first groups a row's maximum hardly ever moves: one comparison then replaces the
  // reduction.
  if (!hn::AllFalse(tag, hn::Gt(hn::Mul(top_all, log2e), hn::Set(tag, *maximum)))) {
    const float raised = hn::GetLane(hn::Mul(hn::MaxOfLanes(tag, top_all), log2e));
    const Floats factor = exp2(hn::Set(tag, *maximum - raised));  // 0 for the row's first keys
    *maximum = raised;
    hn::Store(hn::Mul(hn::Load(tag, sum), factor), tag, sum);
    for (std::int64_t d = 0; d < size; d += kLanes)
      hn::Store(hn::Mul(hn::Load(tag, result + d), factor), tag, result + d);
  }
  // Before anything was visible: a finite stand-in, or -inf - -inf would be NaN.
  const float shift = *maximum == -std::numeric_limits<float>::infinity() ? 0.0f : *maximum;
  const Floats minus_maximum = hn::Set(tag, -shift);
  Floats total[4];
  total[0] = hn::Load(tag, sum);
  for (std::int64_t v = 1; v < 4; ++v) total[v] = hn::Zero(tag);
  for (std::int64_t j = 0; j < whole; j += 4 * kLanes) {
#pragma GCC unroll 4
    for (std::int64_t v = 0; v < 4; ++v) {
      float* const at = scores + j + v * kLanes;
      const Floats p = exp2(hn::MulAdd(hn::Load(tag, at), log2e, minus_maximum));
      hn::Store(p, tag, at);
      total[v] = hn::Add(total[v], p);
    }
  }
  for (std::int64_t j = whole; j < keys; j += kLanes) {
    const Floats p = exp2(hn::MulAdd(hn::Load(tag, scores + j), log2e, minus_maximum));
    hn::Store(p, tag, scores + j);
    total[0] = hn::Add(total[0], p);
  }
  hn::Store(hn::Add(hn::Add(total[0], total[1]), hn::Add(total[2], total[3])), tag, sum);
}

/// One block of one head against panels `run` of the packed group.
inline void forward_block(const MaskIndex& mask, std::int64_t batch, std::int64_t block,
                          std::int64_t group, PanelRun run, const TileRanges& ranges,
                          std::int64_t head_size, const ForwardScratch& scratch,
                          std::int64_t first_row, RowsAhead& ahead) {
  const std::int64_t size = row_size(head_size), rows = mask.rows(block);
  const std::int64_t first = run.first * kKeyPanel, keys = run.last * kKeyPanel - first;
  for (std::int64_t part = 0; part < rows; part += kScoreRows) {
    const std::int64_t count = std::min(kScoreRows, rows - part), row = first_row + part;
    const std::int16_t* const begin = ranges.key_begin + part / kStrip;
    const std::int16_t* const end = ranges.key_end + part / kStrip;
    float* const result = scratch.result + row * size;
    multiply_visible(count, keys, head_size, {scratch.q + row * size, size, 1},
                     {scratch.keys + first * head_size, kTileWidth, kTileWidth * head_size},
                     {scratch.scores, kScoreRow}, begin, end, ahead);
    mask_scores(mask, batch, block, group, run, ranges, part, count, scratch.scores, kScoreRow);
    for (std::int64_t r = 0; r < count; ++r)
      softmax_row(end[r / kStrip] - begin[r / kStrip],
                  scratch.scores + r * kScoreRow + begin[r / kStrip], scratch.maximum + row + r,
                  scratch.sum + (row + r) * kLanes, result + r * size, size);
    multiply_add_visible(count, padded_size(head_size), {scratch.scores, kScoreRow, 1},
                         {scratch.values + first * size, size, kTileWidth}, {result, size}, begin,
                         end, ahead);
  }
}

/// Finishes a block, or leaves it as it is for the keys to come.
inline void finish_block(const AttentionForwardArgs& args, std::int64_t rows, std::int64_t size,
                         const float* result, const float* maximum, const float* sum,
                         BlockResult to) {
  const FloatTag tag;
  for (std::int64_t r = 0; r < rows; ++r) {
    const float l = hn::GetLane(hn::SumOfLanes(tag, hn::Load(tag, sum + r * kLanes)));
    const bool empty = l == 0.0f;
    float factor = empty ? 0.0f : 1.0f / l;
    if (args.more) {
      to.lse[r] = maximum[r];
      to.sum[r] = l;
      factor = 1.0f;
    } else {
      to.lse[r] =
          empty ? -std::numeric_limits<float>::infinity() : (maximum[r] + std::log2(l)) * kLn2;
    }
    for (std::int64_t d = 0; d < args.shape.head_size; ++d)
      to.o[r * args.o_row + d] = factor * result[r * size + d];
  }
}

void forward_task(const AttentionForwardArgs& args, const MaskIndex& mask,
                  const AttentionTask& task, const AttentionTask* next, float* memory) {
  const AttentionShape& shape = args.shape;
  const std::int64_t heads = shape.heads / shape.kv_heads, size = row_size(shape.head_size);
  const std::int64_t blocks = task.last_block - task.first_block;
  Carver carver(memory);
  const ForwardScratch scratch(carver, blocks * heads, shape.head_size);

  struct Place {
    const float* q;
    BlockResult result;
    std::int64_t first_row;
  };
  const auto place = [&](std::int64_t block, std::int64_t head_of_group) {
    const std::int64_t head = task.kv_head * heads + head_of_group, query = block * kQueryBlock;
    const std::int64_t statistic = (task.batch * shape.heads + head) * shape.queries + query;
    return Place{args.q + task.batch * args.q_batch + query * args.q_row + head * shape.head_size,
                 {args.o + task.batch * args.o_batch + query * args.o_row + head * shape.head_size,
                  args.lse + statistic, args.sum ? args.sum + statistic : nullptr},
                 ((block - task.first_block) * heads + head_of_group) * kQueryBlock};
  };

  const auto start = [&](std::int64_t block) {
    for (std::int64_t head = 0; head < heads; ++head) {
      const Place at = place(block, head);
      pack_rows(at.q, args.q_row, mask.rows(block), kQueryBlock, shape.head_size, nullptr,
                shape.scale, scratch.q + at.first_row * size, size);
      start_block(args, mask.rows(block), at.result, size, scratch.result + at.first_row * size,
                  scratch.maximum + at.first_row, scratch.sum + at.first_row * kLanes);
    }
  };
  const auto finish = [&](std::int64_t block) {
    for (std::int64_t head = 0; head < heads; ++head) {
      const Place at = place(block, head);
      finish_block(args, mask.rows(block), size, scratch.result + at.first_row * size,
                   scratch.maximum + at.first_row, scratch.sum + at.first_row * kLanes, at.result);
    }
  };

  TileRanges ranges;
  RowsAhead ahead;
  const auto push_keys = [&](const AttentionTask& of, std::int64_t group) {
    const std::int64_t first = group * kKeyGroup, at = of.batch * args.kv_batch +
                                                       first * args.kv_row +
                                                       of.kv_head * shape.head_size;
    for (const float* from : {args.v, args.k})
      ahead.push(from + at, args.kv_row, std::min(kKeyGroup, shape.keys - first), shape.head_size);
  };
  // The group a block sees last, from the time the block is started.
  std::vector<std::int64_t> last_group(blocks, -1);
  for (std::int64_t group = task.first_group; group < task.last_group; ++group) {
    bool packed = false;
    for (std::int64_t block = task.first_block; block < task.last_block; ++block) {
      const PanelRun run = mask.visible_run(task.batch, block, group);
      if (run.first == run.last) continue;
      if (!packed) {
        const std::int64_t first = group * kKeyGroup,
                           keys = std::min(kKeyGroup, shape.keys - first);
        const std::int64_t padded = (keys + kKeyPanel - 1) / kKeyPanel * kKeyPanel;
        const std::int64_t at =
            task.batch * args.kv_batch + first * args.kv_row + task.kv_head * shape.head_size;
        pack_transposed(args.k + at, args.kv_row, keys, padded, shape.head_size,
                        mask.key_positions() + first, scratch.keys);
        pack_rows(args.v + at, args.kv_row, keys, padded, shape.head_size,
                  mask.key_positions() + first, 1.0f, scratch.values, size);
        ahead.clear();
        if (group + 1 < task.last_group) {
          push_keys(task, group + 1);
        } else if (next) {
          ahead.push(args.q + next->batch * args.q_batch +
                         next->first_block * kQueryBlock * args.q_row +
                         next->kv_head * heads * shape.head_size,
                     args.q_row, mask.rows(next->first_block), heads * shape.head_size);
          push_keys(*next, next->first_group);
        }
        packed = true;
      }
      mask.find_ranges(task.batch, block, group, run, ranges);
      std::int64_t& last = last_group[block - task.first_block];
      if (last < 0) {
        start(block);
        last = mask.last_visible_group(task.batch, block, block + 1, group, task.last_group);
      }
      if (last == group)
        ahead.push(place(block, 0).result.o, args.o_row, mask.rows(block), heads * shape.head_size);
      if (block + 1 < task.last_block && last_group[block + 1 - task.first_block] < 0)
        ahead.push(place(block + 1, 0).q, args.q_row, mask.rows(block + 1),
                   heads * shape.head_size);
      for (std::int64_t head = 0; head < heads; ++head)
        forward_block(mask, task.batch, block, group, run, ranges, shape.head_size, scratch,
                      ((block - task.first_block) * heads + head) * kQueryBlock, ahead);
      if (last == group) finish(block);
    }
  }
  // Those that see nothing.
  for (std::int64_t block = task.first_block; block < task.last_block; ++block) {
    if (last_group[block - task.first_block] >= 0) continue;
    start(block);
    finish(block);
  }
}

}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspan::model::cpu {

HWY_EXPORT(forward_task);

void attention_forward(const AttentionForwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const MaskIndex mask(shape);
  if ((args.merge || args.more) && args.sum == nullptr && shape.batch * shape.queries > 0)
    fail("attention: keys in several blocks (merge {}, more {}) need `sum`", args.merge, args.more);
  const std::int64_t threads = omp_get_max_threads(), heads = shape.heads / shape.kv_heads;
  // About 1536 row-heads share a packed group; fewer where threads would go without work. The cut
  // does not show in the result.
  std::int64_t blocks = std::max<std::int64_t>(1, 16 / heads);
  while (blocks > 1 && shape.batch * shape.kv_heads * (mask.query_blocks() / blocks) < 4 * threads)
    --blocks;

  std::vector<AttentionTask> tasks;
  std::vector<std::int64_t> work;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t first = 0; first < mask.query_blocks(); first += blocks) {
      const std::int64_t last = std::min(first + blocks, mask.query_blocks());
      const std::int64_t tiles = mask.visible_tiles(b, first, last, 0, mask.key_groups());
      const std::int64_t last_group =
          tiles ? mask.last_visible_group(b, first, last, 0, mask.key_groups()) + 1 : 0;
      std::int64_t first_group = 0;
      while (first_group < last_group &&
             mask.visible_tiles(b, first, last, first_group, first_group + 1) == 0)
        ++first_group;
      for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
        tasks.push_back({b, h, first, last, first_group, last_group});
        work.push_back(tiles);
      }
    }
  }
  // Heaviest first: what remains at the end is small.
  std::vector<std::int64_t> order(tasks.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return work[a] > work[b]; });

  const bool on_amx = shape.bf16_operands && uses_amx();
  Carver measure(nullptr);
  ForwardScratch(measure, blocks * heads, shape.head_size);
  const std::int64_t floats =
      on_amx ? amx_forward_scratch(blocks * heads, shape.head_size) : measure.used();
  const auto count = static_cast<std::int64_t>(tasks.size());
  const std::int64_t used_threads = std::min(threads, std::max<std::int64_t>(1, count));
  Scratch scratch(used_threads, floats);
#pragma omp parallel for schedule(dynamic, 1) num_threads(used_threads)
  for (std::int64_t t = 0; t < count; ++t) {
    // Most likely this thread's next one: its first rows are fetched in time.
    const AttentionTask* const next =
        t + used_threads < count ? &tasks[order[t + used_threads]] : nullptr;
    float* const memory = scratch.of(omp_get_thread_num());
    if (on_amx)
      amx_forward_task(args, mask, tasks[order[t]], next, memory);
    else
      HWY_DYNAMIC_DISPATCH(forward_task)(args, mask, tasks[order[t]], next, memory);
  }
}

}  // namespace longspan::model::cpu
#endif
