#include <algorithm>
#include <cmath>

#include "model/kernels/cpu/kernels_cpu.hpp"
#include "model/kernels/cpu/parallel_ranges.hpp"
#include "model/kernels/cpu/row_blocks.hpp"
#include "parallel/device.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels/cpu/norm.cpp"
#include "hwy/foreach_target.h"
//
#include "model/kernels/cpu/vector_math-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace longspan::model::cpu::HWY_NAMESPACE {
namespace {
using namespace vm;

/// fp32 squares overflow from 2e19 on; an infinite variance would turn the row into quiet zeros.
double mean_square_wide(const float* x, std::int64_t width, double mean) {
  double sum = 0;
  for (std::int64_t i = 0; i < width; ++i) sum += (x[i] - mean) * (x[i] - mean);
  return sum / static_cast<double>(width);
}

}  // namespace

void norm_forward_rows(const NormForwardArgs& a, std::int64_t first, std::int64_t last) {
  const double width = static_cast<double>(a.width);
  for (std::int64_t row = first; row < last; ++row) {
    const float* x = a.x + row * a.width;
    float* y = a.y + row * a.width;
    float mean = 0.0f;
    if (!a.rms) {
      const float sum = sum_vectors(
          a.width, [&](std::int64_t i, auto part) LONGSPAN_INLINED { return part.load(x + i); });
      mean = static_cast<float>(sum / width);
    }
    const Vec center = set(mean);
    const float square = sum_vectors(a.width, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
      const Vec distance = part.only(hn::Sub(part.load(x + i), center));
      return hn::Mul(distance, distance);
    });
    double variance = square / width;
    if (!std::isfinite(variance)) variance = mean_square_wide(x, a.width, mean);
    const float rstd = static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(a.eps)));
    if (a.mean != nullptr && !a.rms) a.mean[row] = mean;
    if (a.rstd != nullptr) a.rstd[row] = rstd;
    const Vec scale = set(rstd);
    if (a.bias != nullptr) {
      for_vectors(0, a.width, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
        const Vec xhat = hn::Mul(hn::Sub(part.load(x + i), center), scale);
        part.store(hn::MulAdd(xhat, part.load(a.weight + i), part.load(a.bias + i)), y + i);
      });
    } else {
      for_vectors(0, a.width, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
        const Vec xhat = hn::Mul(hn::Sub(part.load(x + i), center), scale);
        part.store(hn::Mul(xhat, part.load(a.weight + i)), y + i);
      });
    }
  }
}

/// Rows [first, last); dweight and dbias (or null): this block's sums, [width], added to.
void norm_backward_rows(const NormBackwardArgs& a, std::int64_t first, std::int64_t last,
                        float* dweight, float* dbias) {
  const F32 d;
  const float inverse_width = 1.0f / static_cast<float>(a.width);
  for (std::int64_t row = first; row < last; ++row) {
    const float* x = a.x + row * a.width;
    const float* dy = a.dy + row * a.width;
    float* dx = a.dx + row * a.width;
    const Vec center = set(a.rms ? 0.0f : a.mean[row]), rstd = set(a.rstd[row]);
    // With g = dy * weight: dx = rstd (g - mean(g) - xhat mean(g xhat)), the middle term for
    // LayerNorm only.
    Vec sum_g = hn::Zero(d), sum_gx = hn::Zero(d);
    for_vectors(0, a.width, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
      const Vec xhat = hn::Mul(hn::Sub(part.load(x + i), center), rstd);
      const Vec slope = part.load(dy + i);
      const Vec g = hn::Mul(slope, part.load(a.weight + i));
      sum_g = hn::Add(sum_g, g);
      sum_gx = hn::MulAdd(g, part.only(xhat), sum_gx);
      part.store(hn::MulAdd(slope, xhat, part.load(dweight + i)), dweight + i);
      if (dbias != nullptr) part.store(hn::Add(slope, part.load(dbias + i)), dbias + i);
    });
    const float mean_gx = inverse_width * hn::GetLane(hn::SumOfLanes(d, sum_gx));
    const float mean_g = a.rms ? 0.0f : inverse_width * hn::GetLane(hn::SumOfLanes(d, sum_g));
    const Vec along = set(mean_gx), level = set(mean_g);
    const auto gradient = [&](std::int64_t i, auto part) LONGSPAN_INLINED {
      const Vec xhat = hn::Mul(hn::Sub(part.load(x + i), center), rstd);
      const Vec g = hn::MulSub(part.load(dy + i), part.load(a.weight + i), level);
      return hn::Mul(rstd, hn::NegMulAdd(xhat, along, g));
    };
    if (a.accumulate_dx) {
      for_vectors(0, a.width, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
        part.store(hn::Add(part.load(dx + i), gradient(i, part)), dx + i);
      });
    } else {
      for_vectors(0, a.width, [&](std::int64_t i, auto part) LONGSPAN_INLINED {
        part.store(gradient(i, part), dx + i);
      });
    }
  }
}

}  // namespace longspan::model::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspan::model::cpu {

HWY_EXPORT(norm_forward_rows);
HWY_EXPORT(norm_backward_rows);

void norm_forward(const NormForwardArgs& args) {
  parallel_ranges(args.rows, 1, args.width, [&](std::int64_t first, std::int64_t last) {
    HWY_DYNAMIC_DISPATCH(norm_forward_rows)(args, first, last);
  });
}

void residual_norm_forward(const ResidualNormArgs& args) {
  // 32 KiB each of x, r, their sum and its norm: the second-level cache holds them.
  const std::int64_t together =
      std::max<std::int64_t>(1, 8192 / std::max<std::int64_t>(1, args.norm.width));
  parallel_ranges(args.norm.rows, 1, 2 * args.norm.width,
                  [&](std::int64_t first, std::int64_t last) {
                    for (std::int64_t row = first; row < last; row += together) {
                      const std::int64_t end = std::min(row + together, last);
                      residual_forward_rows(args.residual, row, end);
                      HWY_DYNAMIC_DISPATCH(norm_forward_rows)(args.norm, row, end);
                    }
                  });
}

void norm_backward(const NormBackwardArgs& args) {
  if (args.rows == 0) return;
  const RowBlocks blocks(args.rows);
  const std::int64_t width = args.width;
  Buffer<float> dweight(cpu_device(), blocks.count, width), dbias;
  if (args.dbias != nullptr) dbias = Buffer<float>(cpu_device(), blocks.count, width);
  parallel_ranges(blocks.count, 1, blocks.rows_each * width,
                  [&](std::int64_t first, std::int64_t last) {
                    for (std::int64_t block = first; block < last; ++block) {
                      float* dw = dweight.view().row(block);
                      float* db = dbias.empty() ? nullptr : dbias.view().row(block);
                      std::fill(dw, dw + width, 0.0f);
                      if (db != nullptr) std::fill(db, db + width, 0.0f);
                      HWY_DYNAMIC_DISPATCH(norm_backward_rows)
                      (args, blocks.begin(block), blocks.end(block), dw, db);
                    }
                  });
  add_partials(blocks.count, width, dweight.data(), args.dweight);
  if (args.dbias != nullptr) add_partials(blocks.count, width, dbias.data(), args.dbias);
}

}  // namespace longspan::model::cpu
#endif  // HWY_ONCE
