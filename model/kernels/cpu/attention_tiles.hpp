/// What attention on AMX, the matrix unit of recent Xeons, is made of: products of bfloat16
/// matrices with fp32 sums, the layouts that they read, transposition and exp2. Intel 64 and IA-32
/// Architectures Optimization Reference Manual, chapter on AMX.
///
/// Included by attention_amx_*.cpp alone: all of it is compiled for AVX-512 and AMX and may run
/// only where amx_works().
#pragma once

#include <hwy/base.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "model/kernels/cpu/attention_mask.hpp"
#include "model/kernels/cpu/attention_tasks.hpp"

// g++ 12 takes the lanes that its own intrinsics leave undefined for a mistake (GCC bug 105593).
#if HWY_COMPILER_GCC_ACTUAL
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

/// Around all that uses these instructions.
#define LONGSPAN_AMX_BEGIN \
  HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")
#define LONGSPAN_AMX_END HWY_POP_ATTRIBUTES

LONGSPAN_AMX_BEGIN
namespace longspan::model::cpu::amx {

using Bf16 = std::uint16_t;  ///< its bits

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

/// A tile of sums is 16 x 16; one instruction adds the products of 32 terms to each of them.
inline constexpr std::int64_t kSide = 16, kTerms = 32;
/// bfloat16 numbers of an operand tile: 1 KiB.
inline constexpr std::int64_t kTile = kSide * kTerms;

inline std::int64_t round_up(std::int64_t x, std::int64_t unit) {
  return (x + unit - 1) / unit * unit;
}

/// Operands are stored as they are loaded, tile by tile; these are the distances from one tile to
/// the next. A tile of the left side is 16 rows of 32 terms.
struct Left {
  const Bf16* data;
  std::int64_t rows, terms;
};
/// 32 terms by 16 columns: terms 2i and 2i + 1 of a column stand side by side in row i.
struct Right {
  const Bf16* data;
  std::int64_t columns, terms;
};
struct Sums {
  float* data;
  std::int64_t row;
};

/// Makes the calling thread's tiles usable: eight of 16 rows of 64 bytes. Subnormal numbers are
/// zeros meanwhile, as they are to AMX: vectors with some cost 40 times as much.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = kSide;
    _tile_loadconfig(&config);
    _mm_setcsr(csr_ | kSubnormalsAreZero);
  }
  ~TileRegisters() {
    _tile_release();
    _mm_setcsr(csr_);
  }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  static constexpr unsigned kSubnormalsAreZero = 0x8040;  // FTZ and DAZ of MXCSR
  const unsigned csr_ = _mm_getcsr();
};

/// kRows x kColumns tiles of c, at most 2 x 2, from `steps` times 32 terms.
template <int kRows, int kColumns, bool kAdd>
inline void multiply_tiles(std::int64_t steps, Left a, Right b, Sums c) {
  const std::int64_t c_row = c.row * 4;
  float* const c2 = c.data + kSide * c.row;
  if constexpr (kAdd) {
    _tile_loadd(0, c.data, c_row);
    if constexpr (kColumns == 2) _tile_loadd(1, c.data + kSide, c_row);
    if constexpr (kRows == 2) _tile_loadd(2, c2, c_row);
    if constexpr (kRows == 2 && kColumns == 2) _tile_loadd(3, c2 + kSide, c_row);
  } else {
    _tile_zero(0);
    if constexpr (kColumns == 2) _tile_zero(1);
    if constexpr (kRows == 2) _tile_zero(2);
    if constexpr (kRows == 2 && kColumns == 2) _tile_zero(3);
  }
  const Bf16* left = a.data;
  const Bf16* right = b.data;
  for (std::int64_t s = 0; s < steps; ++s, left += a.terms, right += b.terms) {
    _tile_loadd(4, left, 64);
    _tile_loadd(6, right, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns == 2) {
      _tile_loadd(7, right + b.columns, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRows == 2) {
      _tile_loadd(5, left + a.rows, 64);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kColumns == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c.data, c_row);
  if constexpr (kColumns == 2) _tile_stored(1, c.data + kSide, c_row);
  if constexpr (kRows == 2) _tile_stored(2, c2, c_row);
  if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, c2 + kSide, c_row);
}

/// c = or += a b. rows, columns: multiples of 16. `ahead` is fetched meanwhile.
template <bool kAdd>
inline void multiply(std::int64_t rows, std::int64_t columns, std::int64_t steps, Left a, Right b,
                     Sums c, RowsAhead& ahead) {
  // The instructions' wrappers do not tell the compiler that they read memory.
  asm volatile("" ::: "memory");
  for (std::int64_t j = 0; j < columns; j += 2 * kSide) {
    const Right right{b.data + j / kSide * b.columns, b.columns, b.terms};
    for (std::int64_t i = 0; i < rows; i += 2 * kSide) {
      ahead.fetch();
      const Left left{a.data + i / kSide * a.rows, a.rows, a.terms};
      const Sums sums{c.data + i * c.row + j, c.row};
      const bool two_rows = i + kSide < rows, two_columns = j + kSide < columns;
      if (two_rows && two_columns)
        multiply_tiles<2, 2, kAdd>(steps, left, right, sums);
      else if (two_rows)
        multiply_tiles<2, 1, kAdd>(steps, left, right, sums);
      else if (two_columns)
        multiply_tiles<1, 2, kAdd>(steps, left, right, sums);
      else
        multiply_tiles<1, 1, kAdd>(steps, left, right, sums);
    }
  }
  asm volatile("" ::: "memory");
}

/// 2^x for x <= 120 with a relative error below 3e-6, a thousandth of what rounding to bfloat16
/// costs behind it; 0 for x < -126, also for -inf (with TileRegisters); NaN stays NaN.
inline __m512 exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0);
  __m512 p = _mm512_set1_ps(9.58285e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.590643e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4024099e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9312419e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, _mm512_sub_ps(x, f));
}

/// Columns become rows. in, out: 16 registers of 16 numbers, or pairs of bfloat16 numbers.
inline void transpose(const __m512i* in, __m512i* out) {
  __m512i a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    a[2 * i] = _mm512_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
    a[2 * i + 1] = _mm512_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  // b[4 g + j]: in its lane l, column 4 l + j of rows 4 g to 4 g + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88),
                  high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88),
                  low_odd = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd),
                  high_odd = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
    out[j] = _mm512_shuffle_i32x4(low, high, 0x88);
    out[8 + j] = _mm512_shuffle_i32x4(low, high, 0xdd);
    out[4 + j] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
    out[12 + j] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd);
  }
}

/// bfloat16: `first` in the lower half, `second` in the upper one.
inline __m512i round_both(__m512 first, __m512 second) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}

/// Rows of the caller's memory that are to be packed. Those with a negative position, and those
/// past the last, are zeros.
struct Rows {
  const float* data;
  std::int64_t row, count, size;
  const std::int32_t* positions = nullptr;
  float sign = 1.0f;  ///< 1, -1 or 0

  bool present(std::int64_t r) const { return r < count && !(positions && positions[r] < 0); }
  /// Columns [d, d + 16).
  __m512 part(std::int64_t r, std::int64_t d) const {
    const std::int64_t left = present(r) ? size - d : 0;
    const auto mask = static_cast<__mmask16>(left >= kSide ? 0xffff
                                             : left > 0    ? (1 << left) - 1
                                                           : 0);
    return _mm512_mul_ps(_mm512_set1_ps(sign), _mm512_maskz_loadu_ps(mask, data + r * row + d));
  }
};

/// Left: tiles of the same 16 rows follow one another. padded_rows: a multiple of 16, columns
/// of 32.
inline void pack_left(const Rows& from, std::int64_t padded_rows, std::int64_t columns, Bf16* to) {
  for (std::int64_t r = 0; r < padded_rows; ++r)
    for (std::int64_t d = 0; d < columns; d += kTerms)
      _mm512_store_si512(to + r / kSide * kSide * columns + d * kSide + r % kSide * kTerms,
                         round_both(from.part(r, d), from.part(r, d + kSide)));
}

/// Right, of the transposed rows: 16 rows are 16 columns, 32 of their columns the terms of a tile.
inline void pack_right_transposed(const Rows& from, std::int64_t padded_rows, std::int64_t columns,
                                  Bf16* to) {
  for (std::int64_t r = 0; r < padded_rows; r += kSide)
    for (std::int64_t d = 0; d < columns; d += kTerms, to += kTile) {
      __m512i pairs[16], tile[16];
      for (int i = 0; i < 16; ++i)
        pairs[i] = round_both(from.part(r + i, d), from.part(r + i, d + kSide));
      transpose(pairs, tile);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(to + i * kTerms, tile[i]);
    }
}

/// Rows r and r + 1 of columns [d, d + 16), side by side.
inline __m512i pair_of_rows(const Rows& from, std::int64_t r, std::int64_t d) {
  const __m512i index = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(index, round_both(from.part(r, d), from.part(r + 1, d)));
}

/// Right: 32 rows are the terms, 16 of their columns those of a tile. padded_rows: a multiple of
/// 32, columns of 16. Tiles of the same rows follow one another.
inline void pack_right(const Rows& from, std::int64_t padded_rows, std::int64_t columns, Bf16* to) {
  for (std::int64_t r = 0; r < padded_rows; r += kTerms)
    for (std::int64_t d = 0; d < columns; d += kSide, to += kTile)
      for (int i = 0; i < 16; ++i)
        _mm512_store_si512(to + i * kTerms, pair_of_rows(from, r + 2 * i, d));
}

/// Left, of the transposed rows: 32 rows are the terms, 16 of their columns the rows of a tile, and
/// tiles of the same rows follow one another. padded_rows: a multiple of 32.
inline void pack_left_transposed(const Rows& from, std::int64_t padded_rows, std::int64_t columns,
                                 Bf16* to) {
  for (std::int64_t r = 0; r < padded_rows; r += kTerms)
    for (std::int64_t d = 0; d < columns; d += kSide, to += kTile) {
      __m512i pairs[16], tile[16];
      for (int i = 0; i < 16; ++i) pairs[i] = pair_of_rows(from, r + 2 * i, d);
      transpose(pairs, tile);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(to + i * kTerms, tile[i]);
    }
}

/// Two rows of 32 probabilities, as round_both leaves them, make 16 rows' worth of pairs in two
/// tiles by one instruction each; the columns of the tiles are then those queries of the 32: (0-3,
/// 8-11, 16-19, 24-27), (4-7, 12-15, 20-23, 28-31). What is multiplied with them has its columns in
/// this order.
inline std::int64_t query_of_column(std::int64_t column) {
  const std::int64_t half = column / kSide, c = column % kSide;
  return c / 4 * 8 + half * 4 + c % 4;
}

/// The same of 32 numbers in order, x[0] and x[1].
inline void order_as_columns(const __m512* x, __m512* ordered) {
  const __m512i first = _mm512_set_epi32(27, 26, 25, 24, 19, 18, 17, 16, 11, 10, 9, 8, 3, 2, 1, 0);
  ordered[0] = _mm512_permutex2var_ps(x[0], first, x[1]);
  ordered[1] = _mm512_permutex2var_ps(x[0], _mm512_add_epi32(first, _mm512_set1_epi32(4)), x[1]);
}

/// A piece of a block: 32 queries, which are columns of scores.
inline constexpr std::int64_t kPiece = 2 * kSide;
static_assert(kQueryBlock % kPiece == 0 && kKeyPanel % kTerms == 0);

/// A head's size up to whole tiles, where it is summed over and where it is not.
struct Sizes {
  std::int64_t terms, columns;
  explicit Sizes(std::int64_t head_size)
      : terms(round_up(head_size, kTerms)), columns(round_up(head_size, kSide)) {}
};

/// The factor of the scores. Queries are packed with its sign, so that a larger product is a larger
/// score, and unrounded but for bfloat16.
struct Scale {
  float sign, size;
  explicit Scale(float scale)
      : sign(scale > 0   ? 1.0f
             : scale < 0 ? -1.0f
                         : 0.0f),
        size(sign == 0.0f ? 1.0f : scale * sign) {}
};

/// to[query x row] = factor[query] x[columns x 32 queries, ordered by query_of_column()], kAdd: is
/// added; the first `size` columns of the first `rows` queries.
template <bool kAdd = false>
inline void store_transposed(const float* x, std::int64_t columns, std::int64_t size,
                             std::int64_t rows, const float* factor, float* to, std::int64_t row) {
  for (std::int64_t half = 0; half < 2; ++half)
    for (std::int64_t d = 0; d < columns; d += kSide) {
      __m512i in[16], out[16];
      for (int i = 0; i < 16; ++i) in[i] = _mm512_load_si512(x + (d + i) * kPiece + half * kSide);
      transpose(in, out);
      const std::int64_t left = size - d;
      const auto mask = static_cast<__mmask16>(left >= kSide ? 0xffff
                                               : left > 0    ? (1 << left) - 1
                                                             : 0);
      for (int i = 0; i < 16; ++i) {
        const std::int64_t query = query_of_column(half * kSide + i);
        if (query >= rows) continue;
        const __m512 value = _mm512_castsi512_ps(out[i]), by = _mm512_set1_ps(factor[query]);
        float* const at = to + query * row + d;
        _mm512_mask_storeu_ps(at, mask,
                              kAdd ? _mm512_fmadd_ps(by, value, _mm512_maskz_loadu_ps(mask, at))
                                   : _mm512_mul_ps(by, value));
      }
    }
}

/// Keys [first, last) of the run that a piece of the block may see, multiples of 32.
struct KeyRange {
  std::int64_t first = 0, last = 0;
  bool empty() const { return first >= last; }
};
inline KeyRange visible_keys(const TileRanges& ranges, std::int64_t piece, std::int64_t rows) {
  KeyRange keys{kKeyGroup, 0};
  const std::int64_t end = std::min((piece + 1) * kPiece, rows);
  for (std::int64_t strip = piece * kPiece / kStrip; strip * kStrip < end; ++strip) {
    if (ranges.key_begin[strip] >= ranges.key_end[strip]) continue;
    keys.first = std::min<std::int64_t>(keys.first, ranges.key_begin[strip]);
    keys.last = std::max<std::int64_t>(keys.last, ranges.key_end[strip]);
  }
  return {keys.first / kTerms * kTerms, round_up(keys.last, kTerms)};
}

/// Scores of keys that a query may not see become -inf. scores: keys [first, last) of the run by
/// the 32 queries of the piece.
inline void hide(const MaskIndex& mask, std::int64_t batch, std::int64_t block, std::int64_t group,
                 PanelRun run, std::int64_t piece, KeyRange keys, float* scores) {
  const __m512 hidden = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const std::int64_t query = block * kQueryBlock + piece * kPiece;
  const std::int64_t rows = mask.rows(block) - piece * kPiece;
  for (std::int64_t p = run.first; p < run.last; ++p) {
    const std::int64_t panel = group * kGroupPanels + p, column = (p - run.first) * kKeyPanel;
    const std::int64_t first = std::max(keys.first, column),
                       last = std::min(keys.last, column + kKeyPanel);
    if (first >= last || mask.tile(batch, block, panel) == Visible::kAll) continue;
    for (std::int64_t half = 0; half < 2; ++half) {
      const std::int64_t at = query + half * kSide, left = rows - half * kSide;
      if (left <= 0) continue;
      const auto present = static_cast<__mmask16>(left >= kSide ? 0xffff : (1 << left) - 1);
      const __m512i low = _mm512_maskz_loadu_epi32(present, mask.low() + at),
                    high = _mm512_maskz_loadu_epi32(present, mask.high() + at);
      const __m512i own = mask.query_documents(batch)
                              ? _mm512_maskz_loadu_epi32(present, mask.query_documents(batch) + at)
                              : _mm512_setzero_si512();
      for (std::int64_t key = first; key < last; ++key) {
        const std::int64_t index = panel * kKeyPanel + key - column;
        const __m512i position = _mm512_set1_epi32(mask.key_positions()[index]);
        __mmask16 outside =
            _mm512_cmplt_epi32_mask(position, low) | _mm512_cmpgt_epi32_mask(position, high);
        if (mask.key_documents(batch))
          outside |=
              _mm512_cmpneq_epi32_mask(_mm512_set1_epi32(mask.key_documents(batch)[index]), own);
        _mm512_mask_store_ps(scores + (key - keys.first) * kPiece + half * kSide, outside, hidden);
      }
    }
  }
}

}  // namespace longspan::model::cpu::amx
LONGSPAN_AMX_END
