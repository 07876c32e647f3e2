/// What the attention kernels are made of, compiled once per instruction set: a register-tiled
/// matrix product, packing, exp2 and the mask. Included by sources that use Highway's
/// foreach_target; scratch memory is 64-byte aligned.

// Highway's include guard, one per target.
#if defined(LONGSPAN_ATTENTION_TILE_INL_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSPAN_ATTENTION_TILE_INL_
#undef LONGSPAN_ATTENTION_TILE_INL_
#else
#define LONGSPAN_ATTENTION_TILE_INL_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "model/kernels/cpu/attention_mask.hpp"
#include "model/kernels/cpu/attention_tasks.hpp"

HWY_BEFORE_NAMESPACE();
namespace longspan::model::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using IntTag = hn::ScalableTag<std::int32_t>;
using Floats = hn::Vec<FloatTag>;

constexpr std::int64_t kLanes = hn::MaxLanes(FloatTag());
/// The register tile: 6 rows by 4 vectors fills 24 of 32 registers, 6 by 2 fills 12 of 16. Every
/// product then needs fewer loads than the two per cycle a core can do, and has more independent
/// sums than its latency asks for.
constexpr std::int64_t kTileRows = kStrip;
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM
constexpr std::int64_t kTileVectors = 4;
#else
constexpr std::int64_t kTileVectors = 2;
#endif
constexpr std::int64_t kTileWidth = kTileVectors * kLanes;
static_assert(kKeyPanel % kTileWidth == 0 && kKeyChunk % kLanes == 0);

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

/// head_size rounded up to whole vectors: the columns of products; the zeros behind stay zeros.
inline std::int64_t padded_size(std::int64_t head_size) {
  return (head_size + kLanes - 1) / kLanes * kLanes;
}

/// 2^f for |f| <= 1/2: a minimax polynomial (error 2.6e-9) whose constant term is exactly 1.
HWY_INLINE Floats exp2_of_fraction(Floats f) {
  const FloatTag tag;
  Floats p = hn::Set(tag, 1.5594678e-4f);
  p = hn::MulAdd(p, f, hn::Set(tag, 1.3406643e-3f));
  p = hn::MulAdd(p, f, hn::Set(tag, 9.6176928e-3f));
  p = hn::MulAdd(p, f, hn::Set(tag, 5.5503104e-2f));
  p = hn::MulAdd(p, f, hn::Set(tag, 2.4022652e-1f));
  p = hn::MulAdd(p, f, hn::Set(tag, 6.9314724e-1f));
  return hn::MulAdd(p, f, hn::Set(tag, 1.0f));
}

/// 2^x for x <= 120 with a relative error below 1.2e-7; exactly 0 for x <= -127, also for -inf, and
/// with AVX-512 from -126 on. NaN stays NaN. Cody-Waite reduction to a fraction of at most 1/2.
HWY_INLINE Floats exp2(Floats x) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  // VREDUCEPS takes the nearest integer away, VSCALEFPS multiplies by a power of two: 10 operations
  // where the other way takes 12. Never subnormal: such a vector costs 40 times as much. (The mask
  // of ones: without, g++ 12 warns of the lanes that are not there.)
  const Floats f{_mm512_maskz_reduce_ps(0xffff, x.raw, 0)};
  const __mmask16 not_zero =
      _mm512_cmp_ps_mask(x.raw, _mm512_set1_ps(-126.0f), _CMP_NLE_UQ);  // true for NaN
  return Floats{_mm512_maskz_scalef_ps(not_zero, exp2_of_fraction(f).raw, hn::Sub(x, f).raw)};
#else
  const FloatTag tag;
  const IntTag int_tag;
  // Max takes its second operand if one is NaN. At the clamped end the polynomial is exactly 1, or
  // the sum below would not be 0.
  x = hn::Max(hn::Set(tag, -127.0f), x);
  const Floats to_integer =
      hn::Set(tag, 12582912.0f);  // 1.5 * 2^23: the integer ends up in the low bits
  const Floats shifted = hn::Add(x, to_integer);
  const Floats f = hn::Sub(x, hn::Sub(shifted, to_integer));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(int_tag, shifted));
  return hn::BitCast(tag, hn::Add(hn::BitCast(int_tag, exp2_of_fraction(f)), exponent));
#endif
}

/// c[6 x vectors] = or += a b: one register tile. a is read by broadcast, element (row, k) at a[row
/// * a_row + k * a_depth]; b[k] is `vectors` vectors at b + k * b_row.
template <std::int64_t kVectors, bool kAdd>
HWY_INLINE void multiply_tile(std::int64_t depth, const float* HWY_RESTRICT a, std::int64_t a_row,
                              std::int64_t a_depth, const float* HWY_RESTRICT b, std::int64_t b_row,
                              float* HWY_RESTRICT c, std::int64_t c_row) {
  const FloatTag tag;
  Floats sum[kTileRows][kVectors];
#pragma GCC unroll 16
  for (std::int64_t r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 16
    for (std::int64_t v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(tag);
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    Floats right[kVectors];
#pragma GCC unroll 16
    for (std::int64_t v = 0; v < kVectors; ++v) right[v] = hn::Load(tag, b + v * kLanes);
#pragma GCC unroll 16
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      const Floats left = hn::Set(tag, a[r * a_row]);
#pragma GCC unroll 16
      for (std::int64_t v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(left, right[v], sum[r][v]);
    }
    a += a_depth;
    b += b_row;
  }
#pragma GCC unroll 16
  for (std::int64_t r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 16
    for (std::int64_t v = 0; v < kVectors; ++v) {
      float* const at = c + r * c_row + v * kLanes;
      hn::Store(kAdd ? hn::Add(hn::Load(tag, at), sum[r][v]) : sum[r][v], tag, at);
    }
  }
}

/// The operands of multiply(). Rows of a and c are read and written in whole register tiles: up to
/// 5 rows past the last are touched, and their values are worthless.
struct Left {
  const float* data;
  std::int64_t row, depth;  ///< strides; a transposed matrix is one with row = 1
};
struct Right {
  const float* data;
  std::int64_t row;    ///< from one depth to the next
  std::int64_t panel;  ///< from one kTileWidth columns to the next
};
struct Result {
  float* data;
  std::int64_t row;
};

template <std::int64_t kVectors, bool kAdd>
HWY_NOINLINE void multiply_panel(std::int64_t rows, std::int64_t depth, Left a, const float* b,
                                 std::int64_t b_row, float* c, std::int64_t c_row,
                                 RowsAhead& ahead) {
  for (std::int64_t r = 0; r < rows; r += kTileRows) {
    ahead.fetch();
    multiply_tile<kVectors, kAdd>(depth, a.data + r * a.row, a.row, a.depth, b, b_row,
                                  c + r * c_row, c_row);
  }
}

/// As multiply_panel, up to kTileVectors of width.
template <bool kAdd>
inline void multiply_vectors(std::int64_t vectors, std::int64_t rows, std::int64_t depth, Left a,
                             const float* b, std::int64_t b_row, float* c, std::int64_t c_row,
                             RowsAhead& ahead) {
  if (vectors == kTileVectors)
    return multiply_panel<kTileVectors, kAdd>(rows, depth, a, b, b_row, c, c_row, ahead);
  if (vectors == 1) return multiply_panel<1, kAdd>(rows, depth, a, b, b_row, c, c_row, ahead);
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM
  if (vectors == 2) return multiply_panel<2, kAdd>(rows, depth, a, b, b_row, c, c_row, ahead);
  if (vectors == 3) return multiply_panel<3, kAdd>(rows, depth, a, b, b_row, c, c_row, ahead);
#endif
}

/// Rows from r on, in whole strips, that share the range of r's strip.
inline std::int64_t rows_alike(std::int64_t r, std::int64_t rows, const std::int16_t* begin,
                               const std::int16_t* end) {
  std::int64_t next = r + kStrip;
  while (next < rows && begin[next / kStrip] == begin[r / kStrip] &&
         end[next / kStrip] == end[r / kStrip])
    next += kStrip;
  return next - r;
}

/// c = a b, rows by keys: of each strip of 6 rows only columns [begin[strip], end[strip]),
/// multiples of kKeyChunk.
inline void multiply_visible(std::int64_t rows, std::int64_t columns, std::int64_t depth, Left a,
                             Right b, Result c, const std::int16_t* begin, const std::int16_t* end,
                             RowsAhead& ahead) {
  for (std::int64_t first = 0; first < columns; first += kTileWidth, b.data += b.panel) {
    for (std::int64_t r = 0, count; r < rows; r += count) {
      count = rows_alike(r, rows, begin, end);
      const std::int64_t from = std::max<std::int64_t>(begin[r / kStrip], first);
      const std::int64_t to = std::min<std::int64_t>(end[r / kStrip], first + kTileWidth);
      if (from < to)
        multiply_vectors<false>((to - from) / kLanes, count, depth,
                                {a.data + r * a.row, a.row, a.depth}, b.data + from - first, b.row,
                                c.data + r * c.row + from, c.row, ahead);
    }
  }
}

/// c += a b: for each strip of 6 rows of c only depths [begin[strip], end[strip]). columns: a
/// multiple of kLanes.
inline void multiply_add_visible(std::int64_t rows, std::int64_t columns, Left a, Right b, Result c,
                                 const std::int16_t* begin, const std::int16_t* end,
                                 RowsAhead& ahead) {
  for (std::int64_t first = 0; first < columns; first += kTileWidth, b.data += b.panel) {
    const std::int64_t vectors = std::min(kTileWidth, columns - first) / kLanes;
    for (std::int64_t r = 0, count; r < rows; r += count) {
      count = rows_alike(r, rows, begin, end);
      const std::int64_t from = begin[r / kStrip], depth = end[r / kStrip] - from;
      if (depth > 0)
        multiply_vectors<true>(
            vectors, count, depth, {a.data + r * a.row + from * a.depth, a.row, a.depth},
            b.data + from * b.row, b.row, c.data + r * c.row + first, c.row, ahead);
    }
  }
}

/// to[padded_rows x padded] = factor * from[rows x size], zeros behind and below. Rows with a
/// negative position are zeros, whatever they hold; positions may be null.
inline void pack_rows(const float* from, std::int64_t from_row, std::int64_t rows,
                      std::int64_t padded_rows, std::int64_t size, const std::int32_t* positions,
                      float factor, float* HWY_RESTRICT to, std::int64_t padded) {
  const FloatTag tag;
  const Floats factors = hn::Set(tag, factor);
  for (std::int64_t r = 0; r < padded_rows; ++r, to += padded) {
    const bool present = r < rows && !(positions && positions[r] < 0);
    const float* HWY_RESTRICT const row = from + r * from_row;
    const std::int64_t filled = present ? size : 0, whole = filled - filled % kLanes;
    for (std::int64_t d = 0; d < whole; d += kLanes)
      hn::Store(hn::Mul(factors, hn::LoadU(tag, row + d)), tag, to + d);
    for (std::int64_t d = whole; d < filled; ++d) to[d] = factor * row[d];
    for (std::int64_t d = filled; d < padded; ++d) to[d] = 0.0f;
  }
}

/// Transposes keys into panels of kTileWidth: to[(key / width) * size * width + d * width + key %
/// width]. The keys up to `padded_keys` (a multiple of kKeyPanel), and those with a negative
/// position, are zeros.
inline void pack_transposed(const float* from, std::int64_t from_row, std::int64_t keys,
                            std::int64_t padded_keys, std::int64_t size,
                            const std::int32_t* positions, float* HWY_RESTRICT to) {
#if HWY_TARGET == HWY_SCALAR
  for (std::int64_t j = 0; j < padded_keys; ++j) {
    const bool present = j < keys && positions[j] >= 0;
    float* const panel = to + j / kTileWidth * size * kTileWidth + j % kTileWidth;
    for (std::int64_t d = 0; d < size; ++d)
      panel[d * kTileWidth] = present ? from[j * from_row + d] : 0.0f;
  }
#else
  static const float nothing[256] = {};
  const hn::FixedTag<float, 4> four;
  for (std::int64_t j = 0; j < padded_keys; j += 4) {
    float* const panel = to + j / kTileWidth * size * kTileWidth + j % kTileWidth;
    const float* row[4];
    for (std::int64_t i = 0; i < 4; ++i)
      row[i] = j + i < keys && positions[j + i] >= 0 ? from + (j + i) * from_row : nothing;
    for (std::int64_t d = 0; d < size; d += 4) {
      const auto a = hn::LoadU(four, row[0] + d), b = hn::LoadU(four, row[1] + d);
      const auto c = hn::LoadU(four, row[2] + d), e = hn::LoadU(four, row[3] + d);
      const auto ac_low = hn::InterleaveLower(four, a, c),
                 ac_high = hn::InterleaveUpper(four, a, c);
      const auto be_low = hn::InterleaveLower(four, b, e),
                 be_high = hn::InterleaveUpper(four, b, e);
      hn::Store(hn::InterleaveLower(four, ac_low, be_low), four, panel + d * kTileWidth);
      hn::Store(hn::InterleaveUpper(four, ac_low, be_low), four, panel + (d + 1) * kTileWidth);
      hn::Store(hn::InterleaveLower(four, ac_high, be_high), four, panel + (d + 2) * kTileWidth);
      hn::Store(hn::InterleaveUpper(four, ac_high, be_high), four, panel + (d + 3) * kTileWidth);
    }
  }
#endif
}

/// Scores of keys that a query may not see become -inf, in the part of the tile that was computed.
/// s: rows [first_row, first_row + rows) of the block by keys of the run.
inline void mask_scores(const MaskIndex& mask, std::int64_t batch, std::int64_t block,
                        std::int64_t group, PanelRun run, const TileRanges& ranges,
                        std::int64_t first_row, std::int64_t rows, float* s, std::int64_t s_row) {
  const FloatTag tag;
  const IntTag int_tag;
  const Floats hidden = hn::Set(tag, -std::numeric_limits<float>::infinity());
  for (std::int64_t p = run.first; p < run.last; ++p) {
    const std::int64_t panel = group * kGroupPanels + p, column = (p - run.first) * kKeyPanel;
    if (mask.tile(batch, block, panel) == Visible::kAll) continue;
    const std::int32_t* const positions = mask.key_positions() + panel * kKeyPanel;
    const std::int32_t* const documents =
        mask.key_documents(batch) ? mask.key_documents(batch) + panel * kKeyPanel : nullptr;
    for (std::int64_t r = first_row; r < first_row + rows; ++r) {
      const std::int64_t query = block * kQueryBlock + r;
      const auto low = hn::Set(int_tag, mask.low()[query]),
                 high = hn::Set(int_tag, mask.high()[query]);
      const std::int64_t end =
          std::min<std::int64_t>(ranges.key_end[r / kStrip] - column, kKeyPanel);
      for (std::int64_t j = std::max<std::int64_t>(0, ranges.key_begin[r / kStrip] - column);
           j < end; j += kLanes) {
        const auto position = hn::LoadU(int_tag, positions + j);
        auto outside = hn::Or(hn::Lt(position, low), hn::Gt(position, high));
        if (documents) {
          const auto own = hn::Set(int_tag, mask.query_documents(batch)[query]);
          outside = hn::Or(outside, hn::Ne(hn::LoadU(int_tag, documents + j), own));
        }
        float* const at = s + (r - first_row) * s_row + column + j;
        hn::Store(hn::IfThenElse(hn::RebindMask(tag, outside), hidden, hn::Load(tag, at)), tag, at);
      }
    }
  }
}

}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
