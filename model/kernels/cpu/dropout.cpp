#include <cmath>

#include "model/kernels/cpu/kernels_cpu.hpp"
#include "model/kernels/cpu/parallel_ranges.hpp"
#include "parallel/random.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels/cpu/dropout.cpp"
#include "hwy/foreach_target.h"
//
#include "model/kernels/cpu/vector_math-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace longspan::model::cpu::HWY_NAMESPACE {
namespace {
using namespace vm;

/// Columns whose random words are made at once: one Philox block of four words per 64-bit lane.
#if HWY_TARGET == HWY_SCALAR
constexpr std::int64_t kColumns = 4;
#else
constexpr std::int64_t kColumns =
    4 * static_cast<std::int64_t>(hn::MaxLanes(hn::ScalableTag<std::uint64_t>()));
#endif

/// words[j] = the word of column first_column + j, j < kColumns; first_column is a multiple of 4.
HWY_INLINE void random_words(std::uint64_t key, std::uint64_t sequence, std::uint32_t position,
                             std::uint32_t first_column, std::uint32_t* HWY_RESTRICT words) {
#if HWY_TARGET == HWY_SCALAR
  const PhiloxBlock block = philox(key, sequence, std::uint64_t{position} << 32 | first_column / 4);
  std::copy(block.begin(), block.end(), words);
#else
  // One Philox block (parallel/random.hpp) per 64-bit lane. The 32 x 32 -> 64 bit product reads the
  // lower halves only, so what is left in the upper halves of c0..c3 does no harm until the end.
  const hn::ScalableTag<std::uint64_t> d;
  const hn::Repartition<std::uint32_t, decltype(d)> d32;
  const auto multiply = [&](auto a, auto b) LONGSPAN_INLINED {
    return hn::MulEven(hn::BitCast(d32, a), hn::BitCast(d32, b));
  };
  // A shuffle and not a shift, which would need the same execution port as the product.
  const auto upper = [&](auto a) LONGSPAN_INLINED {
    return hn::BitCast(d, hn::Shuffle2301(hn::BitCast(d32, a)));
  };
  const std::uint64_t half = hn::Lanes(d) / 2;
  // Lanes 0, 2, 4.. hold the first half of the blocks and 1, 3, 5.. the second:
  // InterleaveLower/Upper below then give the words in the order of the columns.
  const auto lane = hn::Iota(d, 0);
  const auto odd = hn::And(lane, hn::Set(d, 1));
  const auto offset =
      hn::Add(hn::ShiftRight<1>(lane), hn::And(hn::Sub(hn::Zero(d), odd), hn::Set(d, half)));
  auto c0 = hn::Add(hn::Set(d, first_column / 4), offset);
  auto c1 = hn::Set(d, position);
  auto c2 = hn::Set(d, sequence & 0xFFFFFFFFu);
  auto c3 = hn::Set(d, sequence >> 32);
  const auto m0 = hn::Set(d, 0xD2511F53u), m1 = hn::Set(d, 0xCD9E8D57u);
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const auto p0 = multiply(c0, m0), p1 = multiply(c2, m1);
    c0 = hn::Xor3(upper(p1), c1, hn::Set(d, k0));
    c2 = hn::Xor3(upper(p0), c3, hn::Set(d, k1));
    c1 = p1;
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const auto low = hn::Set(d, 0xFFFFFFFFu);
  const auto words01 = hn::Or(hn::And(c0, low), hn::ShiftLeft<32>(c1));
  const auto words23 = hn::Or(hn::And(c2, low), hn::ShiftLeft<32>(c3));
  hn::StoreU(hn::BitCast(d32, hn::InterleaveLower(d, words01, words23)), d32, words);
  hn::StoreU(hn::BitCast(d32, hn::InterleaveUpper(d, words01, words23)), d32, words + kColumns / 2);
#endif
}

}  // namespace

/// y = (x or 0) + dropout(r) on rows [first, last).
void dropout_rows(const float* x, const float* r, float* y, std::int64_t width,
                  const Dropout& dropout, std::int64_t first, std::int64_t last) {
  const F32 d;
  const hn::RebindToUnsigned<F32> du;
  // Kept iff word >= probability * 2^32; words are integers, so the bound may be rounded up. It
  // fits 32 bits for any fp32 below 1.
  const double bound = std::ceil(static_cast<double>(dropout.probability) * 4294967296.0);
  const bool none_kept = bound >= 4294967296.0;
  const auto threshold = hn::Set(du, none_kept ? 0xFFFFFFFFu : static_cast<std::uint32_t>(bound));
  const Vec scale = set(none_kept ? 0.0f : 1.0f / (1.0f - dropout.probability));
  alignas(64) std::uint32_t words[kColumns];
  for (std::int64_t row = first; row < last; ++row) {
    const std::uint64_t sequence =
        static_cast<std::uint64_t>(dropout.sequences[row / dropout.tokens]);
    // -1 marks padding; widened with its sign it would fill the counter's lower half as well.
    const std::uint32_t position =
        static_cast<std::uint32_t>(dropout.positions[row % dropout.tokens]);
    for (std::int64_t col = 0; col < width; col += kColumns) {
      random_words(dropout.key, sequence, position, static_cast<std::uint32_t>(col), words);
      const std::int64_t begin = row * width + col;
      for_vectors(
          0, std::min(kColumns, width - col), [&](std::int64_t i, auto part) LONGSPAN_INLINED {
            const auto dropped = hn::RebindMask(d, hn::Lt(hn::LoadU(du, words + i), threshold));
            const Vec branch =
                hn::IfThenZeroElse(dropped, hn::Mul(part.load(r + begin + i), scale));
            part.store(x == nullptr ? branch : hn::Add(part.load(x + begin + i), branch),
                       y + begin + i);
          });
    }
  }
}

/// Without dropout: y = (x or 0) + r.
void residual_range(const float* x, const float* r, float* y, std::int64_t begin,
                    std::int64_t end) {
  for_vectors(begin, end, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
    const Vec branch = part.load(r + i);
    part.store(x == nullptr ? branch : hn::Add(part.load(x + i), branch), y + i);
  });
}

}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspan::model::cpu {

HWY_EXPORT(dropout_rows);
HWY_EXPORT(residual_range);

void residual_forward(const ResidualForwardArgs& args) {
  if (args.dropout.probability > 0.0f) {
    parallel_ranges(args.rows, 1, 4 * args.width, [&](std::int64_t first, std::int64_t last) {
      HWY_DYNAMIC_DISPATCH(dropout_rows)
      (args.x, args.r, args.y, args.width, args.dropout, first, last);
    });
    return;
  }
  if (args.x == nullptr && args.y == args.r) return;
  parallel_ranges(args.rows * args.width, kLine, 1, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(residual_range)(args.x, args.r, args.y, begin, end);
  });
}

void residual_forward_rows(const ResidualForwardArgs& args, std::int64_t first, std::int64_t last) {
  const auto& [rows, width, x, r, y, dropout] = args;
  if (dropout.probability > 0.0f) {
    HWY_DYNAMIC_DISPATCH(dropout_rows)(x, r, y, width, dropout, first, last);
  } else if (x != nullptr || y != r) {
    HWY_DYNAMIC_DISPATCH(residual_range)(x, r, y, first * width, last * width);
  }
}

void residual_backward(const ResidualBackwardArgs& args) {
  residual_forward({args.rows, args.width, nullptr, args.dy, args.dr, args.dropout});
}

}  // namespace longspan::model::cpu
#endif  // HWY_ONCE
