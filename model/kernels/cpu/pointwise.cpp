#include <omp.h>

#include <algorithm>

#include "model/kernels/cpu/kernels_cpu.hpp"
#include "model/kernels/cpu/parallel_ranges.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels/cpu/pointwise.cpp"
#include "hwy/foreach_target.h"
//
#include "model/kernels/cpu/vector_math-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace longspan::model::cpu::HWY_NAMESPACE {
namespace {
using namespace vm;

// 0.5 (1 + tanh(u)) = sigmoid(2u): one exponential, and no cancellation where tanh comes near -1.
constexpr float kTwoRootTwoOverPi = 1.5957691216057308f;
constexpr float kCubic = 0.044715f;

HWY_INLINE Sigmoid gelu_gate(Vec x, Vec square) {
  const Vec inner = hn::MulAdd(hn::Mul(set(kCubic), square), x, x);
  return sigmoid(hn::Mul(set(kTwoRootTwoOverPi), inner));
}

}  // namespace

void gelu_forward_range(const GeluForwardArgs& a, std::int64_t begin, std::int64_t end) {
  for_vectors(begin, end, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
    const Vec x = part.load(a.x + i);
    part.store(hn::Mul(x, gelu_gate(x, hn::Mul(x, x)).s), a.y + i);
  });
}

void gelu_backward_range(const GeluBackwardArgs& a, std::int64_t begin, std::int64_t end) {
  for_vectors(begin, end, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
    const Vec x = part.load(a.x + i);
    // Beyond |x| = 100 the gate is closed or open; the slope must not outgrow what is left of 1 -
    // s.
    const Vec square = hn::Min(hn::Mul(x, x), set(1e4f));
    const Sigmoid gate = gelu_gate(x, square);
    // (x s(2u))' = s + x s (1 - s) 2u'
    const Vec slope =
        hn::MulAdd(set(3.0f * kCubic * kTwoRootTwoOverPi), square, set(kTwoRootTwoOverPi));
    const Vec bell = hn::Mul(hn::Mul(x, hn::Mul(gate.s, gate.complement)), slope);
    part.store(hn::Mul(part.load(a.dy + i), hn::Add(gate.s, bell)), a.dx + i);
  });
}

void swiglu_forward_rows(const SwigluForwardArgs& a, std::int64_t first, std::int64_t last) {
  for (std::int64_t row = first; row < last; ++row) {
    const float* gate = a.gate_up + row * 2 * a.width;
    const float* up = gate + a.width;
    float* y = a.y + row * a.width;
    for_vectors(0, a.width, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
      const Vec g = part.load(gate + i);
      part.store(hn::Mul(hn::Mul(g, sigmoid(g).s), part.load(up + i)), y + i);
    });
  }
}

void swiglu_backward_rows(const SwigluBackwardArgs& a, std::int64_t first, std::int64_t last) {
  for (std::int64_t row = first; row < last; ++row) {
    const float* gate = a.gate_up + row * 2 * a.width;
    const float* dy = a.dy + row * a.width;
    float* dgate = a.dgate_up + row * 2 * a.width;
    for_vectors(0, a.width, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
      const Vec g = part.load(gate + i), u = part.load(gate + a.width + i), d = part.load(dy + i);
      const Sigmoid sigma = sigmoid(g);
      const Vec silu = hn::Mul(g, sigma.s);
      const Vec slope = hn::MulAdd(silu, sigma.complement, sigma.s);  // silu' = s + g s (1 - s)
      part.store(hn::Mul(d, silu), dgate + a.width + i);
      part.store(hn::Mul(hn::Mul(d, u), slope), dgate + i);
    });
  }
}

void rotary_rows(const RotaryArgs& a, std::int64_t first, std::int64_t last) {
  const std::int64_t half = a.head_size / 2;
  const Vec direction = set(a.inverse ? -1.0f : 1.0f);
  for (std::int64_t row = first; row < last; ++row) {
    const float* cosine = a.cos_sin + a.positions[row % a.tokens] * a.head_size;
    const float* sine = cosine + half;
    for (std::int64_t head = 0; head < a.heads; ++head) {
      float* x = a.x + row * a.row_stride + head * a.head_size;
      for_vectors(0, half, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
        const Vec c = part.load(cosine + i), s = hn::Mul(direction, part.load(sine + i));
        const Vec left = part.load(x + i), right = part.load(x + half + i);
        part.store(hn::MulSub(left, c, hn::Mul(right, s)), x + i);
        part.store(hn::MulAdd(right, c, hn::Mul(left, s)), x + half + i);
      });
    }
  }
}

void embedding_forward_rows(const EmbeddingForwardArgs& a, std::int64_t first, std::int64_t last) {
  for (std::int64_t row = first; row < last; ++row) {
    float* y = a.y + row * a.width;
    if (a.ids[row] < 0)
      std::fill_n(y, a.width, 0.0f);
    else
      std::copy_n(a.table + a.ids[row] * a.width, a.width, y);
    if (a.position_table == nullptr) continue;
    const float* position = a.position_table + a.positions[row % a.tokens] * a.width;
    for_vectors(0, a.width, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
      part.store(hn::Add(part.load(y + i), part.load(position + i)), y + i);
    });
  }
}

/// Columns [begin, end) of all rows.
void embedding_backward_columns(const EmbeddingBackwardArgs& a, std::int64_t begin,
                                std::int64_t end) {
  const auto add_to = [&](float* sum, const float* dy) LONGSPAN_INLINED {
    for_vectors(begin, end, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
      part.store(hn::Add(part.load(sum + i), part.load(dy + i)), sum + i);
    });
  };
  for (std::int64_t row = 0; row < a.rows; ++row) {
    const float* dy = a.dy + row * a.width;
    if (a.ids[row] >= 0) add_to(a.dtable + a.ids[row] * a.width, dy);
    if (a.dposition_table != nullptr)
      add_to(a.dposition_table + a.positions[row % a.tokens] * a.width, dy);
  }
}

}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspan::model::cpu {

HWY_EXPORT(gelu_forward_range);
HWY_EXPORT(gelu_backward_range);
HWY_EXPORT(swiglu_forward_rows);
HWY_EXPORT(swiglu_backward_rows);
HWY_EXPORT(rotary_rows);
HWY_EXPORT(embedding_forward_rows);
HWY_EXPORT(embedding_backward_columns);

void gelu_forward(const GeluForwardArgs& args) {
  parallel_ranges(args.count, kLine, 4, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(gelu_forward_range)(args, begin, end);
  });
}

void gelu_backward(const GeluBackwardArgs& args) {
  parallel_ranges(args.count, kLine, 4, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(gelu_backward_range)(args, begin, end);
  });
}

void swiglu_forward(const SwigluForwardArgs& args) {
  parallel_ranges(args.rows, 1, 4 * args.width, [&](std::int64_t first, std::int64_t last) {
    HWY_DYNAMIC_DISPATCH(swiglu_forward_rows)(args, first, last);
  });
}

void swiglu_backward(const SwigluBackwardArgs& args) {
  parallel_ranges(args.rows, 1, 4 * args.width, [&](std::int64_t first, std::int64_t last) {
    HWY_DYNAMIC_DISPATCH(swiglu_backward_rows)(args, first, last);
  });
}

void rotary(const RotaryArgs& args) {
  parallel_ranges(args.rows, 1, args.heads * args.head_size,
                  [&](std::int64_t first, std::int64_t last) {
                    HWY_DYNAMIC_DISPATCH(rotary_rows)(args, first, last);
                  });
}

void embedding_forward(const EmbeddingForwardArgs& args) {
  parallel_ranges(args.rows, 1, args.width, [&](std::int64_t first, std::int64_t last) {
    HWY_DYNAMIC_DISPATCH(embedding_forward_rows)(args, first, last);
  });
}

void embedding_backward(const EmbeddingBackwardArgs& args) {
  // Threads own columns: rows of the table meet often (frequent tokens), columns never, and every
  // thread has equal work.
  parallel_ranges(args.width, kLine, args.rows, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(embedding_backward_columns)(args, begin, end);
  });
}

}  // namespace longspan::model::cpu
#endif  // HWY_ONCE
