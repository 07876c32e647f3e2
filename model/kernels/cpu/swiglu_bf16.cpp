// SwiGLU between bfloat16 numbers: the fp32 operations on pieces that stay in the first-level
// cache, so that memory sees the bfloat16 numbers alone.
#include <algorithm>

#include "model/kernels/cpu/bf16_operand.hpp"
#include "model/kernels/cpu/kernels_cpu.hpp"
#include "model/kernels/cpu/parallel_ranges.hpp"

namespace longspan::model::cpu {
namespace {

/// Columns of a piece: gate, up and what is made of them are 24 KiB. The operations on a piece
/// start no threads (kSerialElements).
constexpr std::int64_t kPiece = 1024;
static_assert(2 * kPiece < kSerialElements);

/// piece(row, first column, columns) for every piece of every row.
template <class Piece>
void for_pieces(std::int64_t rows, std::int64_t width, const Piece& piece) {
  parallel_ranges(rows, 1, 4 * width, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row)
      for (std::int64_t column = 0; column < width; column += kPiece)
        piece(row, column, std::min(kPiece, width - column));
  });
}

/// Gate and up of a piece side by side.
void widen(const std::uint16_t* gate, std::int64_t width, std::int64_t count, float* to) {
  convert_from_bf16(gate, 1, count, count, to);
  convert_from_bf16(gate + width, 1, count, count, to + count);
}

}  // namespace

void swiglu_bf16_forward(const SwigluBf16ForwardArgs& args) {
  for_pieces(args.rows, args.width, [&](std::int64_t row, std::int64_t column, std::int64_t count) {
    alignas(64) float gate_up[2 * kPiece];
    alignas(64) float y[kPiece];
    widen(args.gate_up + row * 2 * args.width + column, args.width, count, gate_up);
    swiglu_forward({1, count, gate_up, y});
    convert_to_bf16(y, 1, count, count, args.y + row * args.width + column);
  });
}

void swiglu_bf16_backward(const SwigluBf16BackwardArgs& args) {
  for_pieces(args.rows, args.width, [&](std::int64_t row, std::int64_t column, std::int64_t count) {
    alignas(64) float gate_up[2 * kPiece];
    std::uint16_t* const gate = args.gate_up + row * 2 * args.width + column;
    widen(gate, args.width, count, gate_up);
    swiglu_backward({1, count, gate_up, args.dy + row * args.width + column, gate_up});
    convert_to_bf16(gate_up, 1, count, count, gate);
    convert_to_bf16(gate_up + count, 1, count, count, gate + args.width);
  });
}

}  // namespace longspan::model::cpu
