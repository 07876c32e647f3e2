/// Operations that touch each element once: activations, residual with dropout, rotary positions,
/// embedding.
#pragma once

#include <cstdint>

namespace longspan::model {

/// y = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016, GPT-2's form). y
/// may be x.
struct GeluForwardArgs {
  std::int64_t count = 0;
  const float* x = nullptr;
  float* y = nullptr;
};
/// hidden_bf16 (may be null) = nearest bfloat16 of x; y_bf16 = that of gelu(hidden). x and y, fp32
/// and different, are room: undefined afterwards. What follows a product with bfloat16 operands.
struct GeluBf16ForwardArgs {
  std::int64_t count = 0;
  float* x = nullptr;
  float* y = nullptr;
  std::uint16_t* hidden_bf16 = nullptr;
  std::uint16_t* y_bf16 = nullptr;
};
/// dx = dy * gelu'(x). dx may be dy.
struct GeluBackwardArgs {
  std::int64_t count = 0;
  const float* x = nullptr;
  const float* dy = nullptr;
  float* dx = nullptr;
};

/// y = silu(gate) * up (Shazeer 2020). gate_up: [rows, 2*width], gate first; y: [rows, width].
struct SwigluForwardArgs {
  std::int64_t rows = 0, width = 0;
  const float* gate_up = nullptr;
  float* y = nullptr;
};
/// dgate_up from dy; dgate_up may be gate_up.
struct SwigluBackwardArgs {
  std::int64_t rows = 0, width = 0;
  const float* gate_up = nullptr;
  const float* dy = nullptr;
  float* dgate_up = nullptr;
};

/// The same where gate and up were kept, and y is wanted, as bfloat16 numbers: the nearest of
/// swiglu_forward() of the numbers in gate_up. wide [rows, 2*width] and wide_y [rows, width] are
/// room, undefined afterwards.
struct SwigluBf16ForwardArgs {
  std::int64_t rows = 0, width = 0;
  const std::uint16_t* gate_up = nullptr;
  std::uint16_t* y = nullptr;
  float* wide = nullptr;
  float* wide_y = nullptr;
};
/// gate_up becomes the nearest bfloat16 numbers of its gradient. wide [rows, 2*width]: room.
struct SwigluBf16BackwardArgs {
  std::int64_t rows = 0, width = 0;
  std::uint16_t* gate_up = nullptr;
  const float* dy = nullptr;
  float* wide = nullptr;
};

/// Which elements dropout keeps: a function of (key, sequence of the row, position of the row,
/// column) alone, so it is the same on every mesh and in every recomputation. Element (row, col) is
/// kept iff word (col % 4) of philox(key, sequences[row / tokens], positions[row % tokens] << 32 |
/// col / 4) >= probability * 2^32, and then scaled by 1 / (1 - probability). probability = 0:
/// nothing is read.
struct Dropout {
  float probability = 0.0f;
  std::uint64_t key = 0;
  const std::int64_t* sequences = nullptr;  ///< [rows / tokens] global sample numbers
  const std::int32_t* positions = nullptr;  ///< [tokens] global positions
  std::int64_t tokens = 0;                  ///< tokens per sequence on this rank
};

/// y = x + dropout(r); x, r, y: [rows, width]; x may be null (y = dropout(r)); y may be x or r.
struct ResidualForwardArgs {
  std::int64_t rows = 0, width = 0;
  const float* x = nullptr;
  const float* r = nullptr;
  float* y = nullptr;
  Dropout dropout;
};
/// dr = dropout(dy): the gradient of r; the gradient of x is dy itself. dr may be dy.
struct ResidualBackwardArgs {
  std::int64_t rows = 0, width = 0;
  const float* dy = nullptr;
  float* dr = nullptr;
  Dropout dropout;
};

/// Rotary positions (Su et al. 2021) in the half-split form of Llama: pairs (i, i + head_size/2) of
/// every head turn by position * theta^(-2i/head_size). In place on x: [rows, heads, head_size]
/// with `row_stride` elements between rows; the row's position is positions[row % tokens]. inverse
/// = true turns back: the backward pass. cos_sin: [max position + 1, head_size] table, cosines of
/// the head_size/2 angles, then sines.
struct RotaryArgs {
  std::int64_t rows = 0, heads = 0, head_size = 0, row_stride = 0;
  float* x = nullptr;
  const std::int32_t* positions = nullptr;
  std::int64_t tokens = 0;
  const float* cos_sin = nullptr;
  bool inverse = false;
};

/// y[row] = table[ids[row]] + (position_table ? position_table[positions[row % tokens]] : 0); y:
/// [rows, width]. ids[row] < 0: the table's row is zero (another rank has it).
struct EmbeddingForwardArgs {
  std::int64_t rows = 0, width = 0;
  const std::int32_t* ids = nullptr;
  const float* table = nullptr;
  const float* position_table = nullptr;
  const std::int32_t* positions = nullptr;
  std::int64_t tokens = 0;
  float* y = nullptr;
};
/// dtable[ids[row]] += dy[row] where ids[row] >= 0; dposition_table (may be null) likewise. Rows
/// are added in ascending order.
struct EmbeddingBackwardArgs {
  std::int64_t rows = 0, width = 0;
  const std::int32_t* ids = nullptr;
  const float* dy = nullptr;
  float* dtable = nullptr;
  float* dposition_table = nullptr;
  const std::int32_t* positions = nullptr;
  std::int64_t tokens = 0;
};

}  // namespace longspan::model
