// Forward attention on AMX. A task is that of attention_forward.cpp, and so is what it leaves for
// keys to come; scores, probabilities and results have queries as columns.
#include <hwy/base.h>

#include <cmath>
#include <vector>

#include "model/kernels/cpu/attention_amx.hpp"

#if HWY_ARCH_X86_64
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "model/kernels/cpu/attention_tiles.hpp"

LONGSPAN_AMX_BEGIN
namespace longspan::model::cpu {
namespace amx {
namespace {

/// A block of one head: kPieces pieces of 32 queries. `result` has the columns of
/// query_of_column(); `maximum` (in units of log2) and `sum` are in order.
struct ForwardScratch {
  Bf16 *queries, *keys, *values, *probabilities;
  float *result, *maximum, *sum, *scores;
  ForwardScratch(Carver& carver, std::int64_t block_heads, std::int64_t head_size) {
    const Sizes sizes(head_size);
    const std::int64_t rows = block_heads * kQueryBlock;
    const auto take = [&](std::int64_t numbers) {
      return reinterpret_cast<Bf16*>(carver.take(numbers / 2));
    };
    queries = take(rows * sizes.terms);
    keys = take(kKeyGroup * sizes.terms);
    values = take(kKeyGroup * sizes.columns);
    probabilities = take(kKeyPanel * kPiece);
    result = carver.take(rows * sizes.columns);
    maximum = carver.take(rows);
    sum = carver.take(rows);
    scores = carver.take(kKeyPanel * kPiece);
  }
};

/// What one piece of a block works on.
struct Piece {
  const Bf16* queries;
  float *result, *maximum, *sum;
};

/// Scores become probabilities, with maximum, sum and result brought up to date. factor: from
/// scores to units of log2, positive.
void softmax(std::int64_t keys, std::int64_t columns, float factor, const ForwardScratch& scratch,
             const Piece& piece) {
  const __m512 factors = _mm512_set1_ps(factor);
  __m512 top[2][2];
  for (int v = 0; v < 2; ++v) top[0][v] = top[1][v] = _mm512_set1_ps(-kInfinity);
  for (std::int64_t k = 0; k < keys; k += 2)
    for (int i = 0; i < 2; ++i)
      for (int v = 0; v < 2; ++v)
        top[i][v] =
            _mm512_max_ps(top[i][v], _mm512_load_ps(scratch.scores + (k + i) * kPiece + v * kSide));
  __m512 total[2], shift[2], rescale[2];
  bool rises = false;
  for (int v = 0; v < 2; ++v) {
    const __m512 before = _mm512_load_ps(piece.maximum + v * kSide),
                 maximum = _mm512_max_ps(
                     _mm512_mul_ps(_mm512_max_ps(top[0][v], top[1][v]), factors), before);
    // Before anything was visible: a finite stand-in, or -inf - -inf would be NaN.
    const __mmask16 none = _mm512_cmp_ps_mask(maximum, _mm512_set1_ps(-kInfinity), _CMP_EQ_OQ);
    shift[v] = _mm512_mask_blend_ps(none, maximum, _mm512_setzero_ps());
    rescale[v] = exp2(_mm512_sub_ps(before, shift[v]));
    rises |= _mm512_cmp_ps_mask(maximum, before, _CMP_GT_OQ) != 0;
    total[v] = _mm512_mul_ps(_mm512_load_ps(piece.sum + v * kSide), rescale[v]);
    _mm512_store_ps(piece.maximum + v * kSide, maximum);
  }
  if (rises) {
    __m512 ordered[2];
    order_as_columns(rescale, ordered);
    for (std::int64_t d = 0; d < columns; ++d)
      for (int v = 0; v < 2; ++v) {
        float* const at = piece.result + d * kPiece + v * kSide;
        _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), ordered[v]));
      }
  }
  for (std::int64_t k = 0; k < keys; k += 2) {
    __m512i rounded[2];
    for (int i = 0; i < 2; ++i) {
      __m512 p[2];
      for (int v = 0; v < 2; ++v) {
        const __m512 s = _mm512_load_ps(scratch.scores + (k + i) * kPiece + v * kSide);
        p[v] = exp2(_mm512_fmsub_ps(s, factors, shift[v]));
        total[v] = _mm512_add_ps(total[v], p[v]);
      }
      rounded[i] = round_both(p[0], p[1]);
    }
    Bf16* const to = scratch.probabilities + k / kTerms * 2 * kTile + k % kTerms * kSide;
    _mm512_store_si512(to, _mm512_unpacklo_epi16(rounded[0], rounded[1]));
    _mm512_store_si512(to + kTile, _mm512_unpackhi_epi16(rounded[0], rounded[1]));
  }
  for (int v = 0; v < 2; ++v) _mm512_store_ps(piece.sum + v * kSide, total[v]);
}

/// The results of one block of one head in the caller's memory.
struct BlockResult {
  float *o, *lse, *sum;  ///< sum: null where the keys come in one block
};

/// Starts a piece from nothing, or from what the keys before these have left. rows: its queries.
void start_piece(const AttentionForwardArgs& args, std::int64_t rows, BlockResult from,
                 std::int64_t columns, const Piece& piece) {
  const std::int64_t size = args.shape.head_size;
  bool any = false;
  for (std::int64_t r = 0; r < kPiece; ++r) {
    // Not the maximum: a query with a NaN has none, and its NaN must stay.
    const bool merged = args.merge && r < rows && from.sum[r] != 0.0f;
    any |= merged;
    piece.maximum[r] = merged ? from.lse[r] : -kInfinity;
    piece.sum[r] = merged ? from.sum[r] : 0.0f;
  }
  std::fill_n(piece.result, columns * kPiece, 0.0f);
  if (!any) return;
  for (std::int64_t c = 0; c < kPiece; ++c) {
    const std::int64_t r = query_of_column(c);
    if (piece.sum[r] == 0.0f) continue;
    for (std::int64_t d = 0; d < size; ++d)
      piece.result[d * kPiece + c] = from.o[r * args.o_row + d];
  }
}

/// Finishes a piece, or leaves it as it is for the keys to come.
void finish_piece(const AttentionForwardArgs& args, std::int64_t rows, std::int64_t columns,
                  const Piece& piece, BlockResult to) {
  alignas(64) float factor[kPiece];
  for (std::int64_t r = 0; r < kPiece; ++r) {
    const float l = piece.sum[r];
    const bool empty = l == 0.0f;
    factor[r] = args.more ? 1.0f : empty ? 0.0f : 1.0f / l;
    if (r >= rows) continue;
    if (args.more)
      to.lse[r] = piece.maximum[r], to.sum[r] = l;
    else
      to.lse[r] = empty ? -kInfinity : (piece.maximum[r] + std::log2(l)) * kLn2;
  }
  store_transposed(piece.result, columns, args.shape.head_size, rows, factor, to.o, args.o_row);
}

}  // namespace
}  // namespace amx

std::int64_t amx_forward_scratch(std::int64_t block_heads, std::int64_t head_size) {
  Carver measure(nullptr);
  amx::ForwardScratch(measure, block_heads, head_size);
  return measure.used();
}

void amx_forward_task(const AttentionForwardArgs& args, const MaskIndex& mask,
                      const AttentionTask& task, const AttentionTask* next, float* memory) {
  using namespace amx;
  const AttentionShape& shape = args.shape;
  const std::int64_t heads = shape.heads / shape.kv_heads, head_size = shape.head_size;
  const std::int64_t blocks = task.last_block - task.first_block;
  const Sizes sizes(head_size);
  const Scale scale(shape.scale);
  Carver carver(memory);
  const ForwardScratch scratch(carver, blocks * heads, head_size);
  const TileRegisters tiles;

  const auto place = [&](std::int64_t block, std::int64_t head_of_group) {
    const std::int64_t head = task.kv_head * heads + head_of_group, query = block * kQueryBlock;
    const std::int64_t statistic = (task.batch * shape.heads + head) * shape.queries + query;
    return BlockResult{args.o + task.batch * args.o_batch + query * args.o_row + head * head_size,
                       args.lse + statistic, args.sum ? args.sum + statistic : nullptr};
  };
  const auto first_row = [&](std::int64_t block, std::int64_t head) {
    return ((block - task.first_block) * heads + head) * kQueryBlock;
  };
  const auto piece_at = [&](std::int64_t row) {
    return Piece{scratch.queries + row * sizes.terms, scratch.result + row * sizes.columns,
                 scratch.maximum + row, scratch.sum + row};
  };
  /// does(piece, its queries, their results) for all pieces of a block's heads.
  const auto each_piece = [&](std::int64_t block, const auto& does) {
    for (std::int64_t head = 0; head < heads; ++head)
      for (std::int64_t first = 0; first < mask.rows(block); first += kPiece) {
        BlockResult to = place(block, head);
        to.o += first * args.o_row, to.lse += first;
        if (to.sum) to.sum += first;
        does(piece_at(first_row(block, head) + first), std::min(kPiece, mask.rows(block) - first),
             to);
      }
  };
  const auto start = [&](std::int64_t block) {
    for (std::int64_t head = 0; head < heads; ++head)
      pack_right_transposed({args.q + task.batch * args.q_batch + block * kQueryBlock * args.q_row +
                                 (task.kv_head * heads + head) * head_size,
                             args.q_row, mask.rows(block), head_size, nullptr, scale.sign},
                            kQueryBlock, sizes.terms,
                            scratch.queries + first_row(block, head) * sizes.terms);
    each_piece(block, [&](const Piece& piece, std::int64_t rows, BlockResult from) {
      start_piece(args, rows, from, sizes.columns, piece);
    });
  };
  const auto finish = [&](std::int64_t block) {
    each_piece(block, [&](const Piece& piece, std::int64_t rows, BlockResult to) {
      finish_piece(args, rows, sizes.columns, piece, to);
    });
  };

  TileRanges ranges;
  RowsAhead ahead;
  const auto push_keys = [&](const AttentionTask& of, std::int64_t group) {
    const std::int64_t first = group * kKeyGroup,
                       at = of.batch * args.kv_batch + first * args.kv_row + of.kv_head * head_size;
    for (const float* from : {args.v, args.k})
      ahead.push(from + at, args.kv_row, std::min(kKeyGroup, shape.keys - first), head_size);
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
                           keys = std::min(kKeyGroup, shape.keys - first),
                           padded = round_up(keys, kKeyPanel);
        const std::int64_t at =
            task.batch * args.kv_batch + first * args.kv_row + task.kv_head * head_size;
        const std::int32_t* const positions = mask.key_positions() + first;
        pack_left({args.k + at, args.kv_row, keys, head_size, positions}, padded, sizes.terms,
                  scratch.keys);
        pack_left_transposed({args.v + at, args.kv_row, keys, head_size, positions}, padded,
                             sizes.columns, scratch.values);
        ahead.clear();
        if (group + 1 < task.last_group) {
          push_keys(task, group + 1);
        } else if (next) {
          ahead.push(args.q + next->batch * args.q_batch +
                         next->first_block * kQueryBlock * args.q_row +
                         next->kv_head * heads * head_size,
                     args.q_row, mask.rows(next->first_block), heads * head_size);
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
        ahead.push(place(block, 0).o, args.o_row, mask.rows(block), heads * head_size);
      if (block + 1 < task.last_block && last_group[block + 1 - task.first_block] < 0)
        ahead.push(args.q + task.batch * args.q_batch + (block + 1) * kQueryBlock * args.q_row +
                       task.kv_head * heads * head_size,
                   args.q_row, mask.rows(block + 1), heads * head_size);
      for (std::int64_t row = 0; row < mask.rows(block); row += kPiece) {
        const KeyRange keys = visible_keys(ranges, row / kPiece, mask.rows(block));
        for (std::int64_t head = 0; head < heads; ++head) {
          const Piece piece = piece_at(first_row(block, head) + row);
          // Panel by panel, so that scores stay in the first cache beside the keys.
          for (std::int64_t key = keys.first; key < keys.last; key += kKeyPanel) {
            const KeyRange part{key, std::min(key + kKeyPanel, keys.last)};
            const std::int64_t first = run.first * kKeyPanel + key, count = part.last - part.first;
            multiply<false>(count, kPiece, sizes.terms / kTerms,
                            {scratch.keys + first * sizes.terms, kSide * sizes.terms, kTile},
                            {piece.queries, kSide * sizes.terms, kTile}, {scratch.scores, kPiece},
                            ahead);
            hide(mask, task.batch, block, group, run, row / kPiece, part, scratch.scores);
            softmax(count, sizes.columns, scale.size * kLog2E, scratch, piece);
            multiply<true>(sizes.columns, kPiece, count / kTerms,
                           {scratch.values + first * sizes.columns, kTile, kTerms * sizes.columns},
                           {scratch.probabilities, kTile, 2 * kTile}, {piece.result, kPiece},
                           ahead);
          }
        }
      }
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

}  // namespace longspan::model::cpu
LONGSPAN_AMX_END

namespace longspan::model::cpu {

bool amx_works() {
  static const bool works = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
      return false;
    constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAvx512Bf16 = 1u << 5;
    if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || (a & kAvx512Bf16) == 0) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h, since Linux 5.16
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return works;
}

}  // namespace longspan::model::cpu
#else
namespace longspan::model::cpu {
bool amx_works() {
  return false;
}
std::int64_t amx_forward_scratch(std::int64_t, std::int64_t) {
  return 0;
}
void amx_forward_task(const AttentionForwardArgs&, const MaskIndex&, const AttentionTask&,
                      const AttentionTask*, float*) {}
}  // namespace longspan::model::cpu
#endif
