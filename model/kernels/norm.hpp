/// LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019), one row per token.
#pragma once

#include <cstdint>

#include "model/kernels/pointwise.hpp"

namespace longspan::model {

/// LayerNorm: y = (x - mean) * rstd * weight + bias, rstd = 1/sqrt(var + eps). RMSNorm (rms =
/// true): mean = 0 and var = mean(x^2). x, y: [rows, width]; weight, bias (may be null): [width];
/// mean, rstd: [rows], may be null in evaluation, mean unused if rms. y may be x. Row statistics
/// accumulate in fp32 or better.
struct NormForwardArgs {
  std::int64_t rows = 0, width = 0;
  bool rms = false;
  float eps = 1e-5f;
  const float* x = nullptr;
  const float* weight = nullptr;
  const float* bias = nullptr;
  float* y = nullptr;
  float* mean = nullptr;
  float* rstd = nullptr;
};

/// The two steps in which a residual branch ends and the next one begins, in one pass over memory:
/// residual.y = residual.x + dropout(residual.r), then `norm` of it. The same bits as the two
/// operations one after the other on the same backend. norm.x is residual.y, and rows and width are
/// equal; residual.y may be residual.x or residual.r, norm.y overlaps none of the three. Its
/// backward is NormBackwardArgs with accumulate_dx: dx is then the residual stream's gradient.
struct ResidualNormArgs {
  ResidualForwardArgs residual;
  NormForwardArgs norm;
};

/// dx = (accumulate_dx ? dx : 0) + d(y)/d(x)^T dy;  dweight += sum over rows of dy * xhat;  dbias
/// += sum of dy. Row sums are taken in an order that depends on `rows` and the thread count only.
/// dx may be dy unless it accumulates.
struct NormBackwardArgs {
  std::int64_t rows = 0, width = 0;
  bool rms = false;
  const float* dy = nullptr;
  const float* x = nullptr;
  const float* weight = nullptr;
  const float* mean = nullptr;
  const float* rstd = nullptr;
  float* dx = nullptr;
  bool accumulate_dx = false;
  float* dweight = nullptr;
  float* dbias = nullptr;  ///< may be null
};

}  // namespace longspan::model
