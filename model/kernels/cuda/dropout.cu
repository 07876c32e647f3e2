#include "model/kernels/cuda/kernels_cuda.hpp"
#include "model/kernels/cuda/residual.cuh"

namespace longspan::model::cuda {

void residual_forward(const ResidualForwardArgs& args, Stream& stream) {
  if (args.dropout.probability > 0.0f) {
    const bool vector = args.width % 4 == 0 && aligned16(args.x, args.r, args.y);
    run_rows(args.rows, args.width, vector, DropoutRows(args), stream);
    return;
  }
  if (args.x == nullptr && args.y == args.r) return;
  run_flat(args.rows * args.width, Residual(args), stream, {args.x, args.r, args.y});
}

void residual_backward(const ResidualBackwardArgs& args, Stream& stream) {
  residual_forward({args.rows, args.width, nullptr, args.dy, args.dr, args.dropout}, stream);
}

}  // namespace longspan::model::cuda
