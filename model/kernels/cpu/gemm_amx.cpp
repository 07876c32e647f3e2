#include "model/kernels/cpu/gemm_amx.hpp"

#include <hwy/base.h>

#if HWY_ARCH_X86_64
#include <omp.h>

#include "model/kernels/cpu/attention_tiles.hpp"
#include "parallel/device.hpp"

LONGSPAN_AMX_BEGIN
namespace longspan::model::cpu {
namespace amx {
namespace {

/// A step computes 32 x 32 sums.
constexpr std::int64_t kStep = 2 * kSide;

/// Makes the calling thread's tiles usable: eight of 16 rows of 64 bytes. Unlike attention's
/// TileRegisters it leaves subnormal numbers alone: sums of c may be some.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = kSide;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

/// sums [32, 32] = 32 rows of `row` numbers times packed columns, over steps of 32 terms.
inline void multiply_step(std::int64_t steps, const Bf16* left, std::int64_t row, const Bf16* right,
                          float* sums) {
  const std::int64_t bytes = row * 2;
  asm volatile("" ::: "memory");  // the tile instructions do not say that they read memory
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t s = 0; s < steps; ++s, left += kTerms, right += 2 * kTile) {
    _tile_loadd(4, left, bytes);
    _tile_loadd(6, right, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + kTile, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, left + kSide * row, bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 4 * kStep);
  _tile_stored(1, sums + kSide, 4 * kStep);
  _tile_stored(2, sums + kSide * kStep, 4 * kStep);
  _tile_stored(3, sums + kSide * kStep + kSide, 4 * kStep);
  asm volatile("" ::: "memory");
}

/// c [rows, columns] = left right over `terms`.
struct Problem {
  std::int64_t rows, columns, terms;
  const Bf16 *left, *right;
  std::int64_t left_row, right_row;  ///< elements between rows as stored
  bool left_turned;                  ///< left is stored [terms, rows]
  bool right_turned;                 ///< right is stored [columns, terms]
  AmxBlocks at_once;

  Problem(const GemmArgs& a, std::int64_t threads)
      : rows(a.m),
        columns(a.n),
        terms(a.k),
        left(a.a_bf16),
        right(a.b_bf16),
        left_row(a.lda),
        right_row(a.ldb),
        left_turned(a.trans_a),
        right_turned(a.trans_b),
        at_once(a.m, a.n, a.k, a.trans_a, threads) {}
};

/// 32 numbers from `from` on, of which `count` are there.
inline __m512i load(const Bf16* from, std::int64_t count) {
  if (count >= kTerms) return _mm512_loadu_si512(from);
  const __mmask32 mask = count <= 0 ? 0 : (__mmask32{1} << count) - 1;
  return _mm512_maskz_loadu_epi16(mask, from);
}

/// Two rows' numbers side by side: those of columns 0 to 15, and those of columns 16 to 31.
inline void pairs_of(__m512i first, __m512i second, __m512i& low, __m512i& high) {
  const __m512i index = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  low = _mm512_permutex2var_epi16(first, index, second);
  high = _mm512_permutex2var_epi16(first, _mm512_add_epi16(index, _mm512_set1_epi16(16)), second);
}

/// 32 terms of 32 columns from [32, 32] numbers in rows of `row`, of which `terms` x `columns` are
/// there: two tiles.
inline void pack_right_step(const Bf16* from, std::int64_t row, bool turned, std::int64_t terms,
                            std::int64_t columns, Bf16* to) {
  if (!turned) {
    for (std::int64_t t = 0; t < kTerms; t += 2) {
      __m512i low, high;
      pairs_of(load(from + t * row, t < terms ? columns : 0),
               load(from + (t + 1) * row, t + 1 < terms ? columns : 0), low, high);
      _mm512_store_si512(to + t * kSide, low);
      _mm512_store_si512(to + kTile + t * kSide, high);
    }
    return;
  }
  for (std::int64_t half = 0; half < 2; ++half) {
    __m512i in[16], out[16];
    for (std::int64_t i = 0; i < kSide; ++i) {
      const std::int64_t column = half * kSide + i;
      in[i] = load(from + column * row, column < columns ? terms : 0);
    }
    transpose(in, out);
    for (std::int64_t i = 0; i < kSide; ++i)
      _mm512_store_si512(to + half * kTile + i * kTerms, out[i]);
  }
}

/// `rows` x `terms` numbers of the left operand in rows of `to_row`, zeros up to multiples of 32.
void pack_left_rows(const Problem& p, std::int64_t first_row, std::int64_t rows,
                    std::int64_t first_term, std::int64_t terms, Bf16* to, std::int64_t to_row) {
  for (std::int64_t r = 0; r < rows; r += kStep)
    for (std::int64_t t = 0; t < terms; t += kTerms) {
      if (!p.left_turned) {
        const Bf16* from = p.left + (first_row + r) * p.left_row + first_term + t;
        for (std::int64_t i = 0; i < kStep; ++i)
          _mm512_storeu_si512(to + (r + i) * to_row + t,
                              load(from + i * p.left_row, r + i < rows ? terms - t : 0));
        continue;
      }
      const Bf16* from = p.left + (first_term + t) * p.left_row + first_row + r;
      __m512i in[2][16], out[16];
      for (std::int64_t i = 0; i < kSide; ++i)
        pairs_of(load(from + 2 * i * p.left_row, t + 2 * i < terms ? rows - r : 0),
                 load(from + (2 * i + 1) * p.left_row, t + 2 * i + 1 < terms ? rows - r : 0),
                 in[0][i], in[1][i]);
      for (std::int64_t half = 0; half < 2; ++half) {
        transpose(in[half], out);
        for (std::int64_t i = 0; i < kSide; ++i)
          _mm512_storeu_si512(to + (r + half * kSide + i) * to_row + t, out[i]);
      }
    }
}

/// The bits of the nearest bfloat16 numbers, as convert_to_bf16() has them: the instruction of that
/// name makes subnormal numbers zero.
inline __m256i nearest(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x),
                odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1)),
                rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(
      _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000)), 16));
}

inline __mmask16 mask_of(std::int64_t count) {
  return static_cast<__mmask16>(count >= kSide ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

/// sums: [32, 32]. They go to c from [row, column] on, the first sums of an element with the bias;
/// or, rounded, to c_bf16.
void store(const GemmArgs& args, Bf16* c_bf16, const float* sums, std::int64_t row,
           std::int64_t column, bool first) {
  const std::int64_t rows = std::min(kStep, args.m - row);
  const bool adds = args.accumulate || !first;
  for (std::int64_t half = 0; half < 2; ++half) {
    const std::int64_t j = column + half * kSide;
    const __mmask16 mask = mask_of(args.n - j);
    const __m512 bias = args.bias != nullptr && first ? _mm512_maskz_loadu_ps(mask, args.bias + j)
                                                      : _mm512_setzero_ps();
    for (std::int64_t r = 0; r < rows; ++r) {
      __m512 sum = _mm512_load_ps(sums + r * kStep + half * kSide);
      if (args.bias != nullptr && first) sum = _mm512_add_ps(sum, bias);
      if (c_bf16 != nullptr) {
        _mm256_mask_storeu_epi16(c_bf16 + (row + r) * args.n + j, mask, nearest(sum));
        continue;
      }
      float* const c = args.c + (row + r) * args.ldc + j;
      if (adds) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, c), sum);
      _mm512_mask_storeu_ps(c, mask, sum);
    }
  }
}

/// Rows from `row` on, columns [first, first + columns), terms [term, term + terms). right: packed.
void multiply_rows(const GemmArgs& args, Bf16* c_bf16, const Problem& p, std::int64_t row,
                   std::int64_t first, std::int64_t columns, std::int64_t term, std::int64_t terms,
                   const Bf16* right, Bf16* scratch) {
  const std::int64_t rows = std::min(p.at_once.rows, p.rows - row), steps = round_up(terms, kTerms);
  const Bf16* left = p.left + row * p.left_row + term;
  std::int64_t left_row = p.left_row;
  if (p.left_turned || terms % kTerms != 0 || rows % kStep != 0) {
    left = scratch, left_row = p.at_once.left_row();
    pack_left_rows(p, row, rows, term, terms, scratch, left_row);
  }
  alignas(64) float sums[kStep * kStep];
  for (std::int64_t r = 0; r < rows; r += kStep)
    for (std::int64_t c = 0; c < columns; c += kStep) {
      multiply_step(steps / kTerms, left + r * left_row, left_row, right + c * steps, sums);
      store(args, c_bf16, sums, row + r, first + c, term == 0);
    }
}

void multiply_all(const GemmArgs& args, Bf16* c_bf16) {
  const std::int64_t threads = omp_get_max_threads();
  const Problem p(args, threads);
  const Buffer<Bf16> right(cpu_device(), p.at_once.right_numbers());
  const Buffer<Bf16> scratch(cpu_device(), threads * p.at_once.left_numbers());
  const std::int64_t row_blocks = (p.rows + p.at_once.rows - 1) / p.at_once.rows;
#pragma omp parallel num_threads(static_cast <int>(threads))
  {
    const Tiles tiles;
    Bf16* const mine = scratch.data() + omp_get_thread_num() * p.at_once.left_numbers();
    for (std::int64_t term = 0; term < p.terms; term += p.at_once.terms) {
      const std::int64_t terms = std::min(p.at_once.terms, p.terms - term),
                         steps = round_up(terms, kTerms);
      for (std::int64_t first = 0; first < p.columns; first += p.at_once.columns) {
        const std::int64_t columns = std::min(p.at_once.columns, p.columns - first);
#pragma omp for schedule(static) collapse(2)
        for (std::int64_t c = 0; c < columns; c += kStep)
          for (std::int64_t t = 0; t < steps; t += kTerms)
            pack_right_step(p.right + (p.right_turned ? (first + c) * p.right_row + term + t
                                                      : (term + t) * p.right_row + first + c),
                            p.right_row, p.right_turned, terms - t, columns - c,
                            right.data() + c * steps + t * kStep);
#pragma omp for schedule(dynamic)
        for (std::int64_t block = 0; block < row_blocks; ++block)
          multiply_rows(args, c_bf16, p, block * p.at_once.rows, first, columns, term, terms,
                        right.data(), mine);
      }
    }
  }
}

}  // namespace
}  // namespace amx

void gemm_amx(const GemmArgs& args, std::uint16_t* c_bf16) {
  amx::multiply_all(args, c_bf16);
}

}  // namespace longspan::model::cpu
LONGSPAN_AMX_END
#else
namespace longspan::model::cpu {
void gemm_amx(const GemmArgs&, std::uint16_t*) {}
}  // namespace longspan::model::cpu
#endif
