// Operations that a backend may do in one pass, as their parts one after the other.
#include "model/kernels/kernels.hpp"

namespace longspan::model {

void Kernels::gemm_to_bf16(const GemmToBf16Args& args, Stream& stream) {
  const GemmArgs& product = args.product;
  gemm(product, stream);
  to_bf16(product.m, product.n, product.c, product.n, args.c_bf16, stream);
}

void Kernels::swiglu_bf16_forward(const SwigluBf16ForwardArgs& args, Stream& stream) {
  from_bf16(args.rows * 2 * args.width, args.gate_up, args.wide, stream);
  swiglu_forward({args.rows, args.width, args.wide, args.wide_y}, stream);
  to_bf16(args.rows, args.width, args.wide_y, args.width, args.y, stream);
}

void Kernels::swiglu_bf16_backward(const SwigluBf16BackwardArgs& args, Stream& stream) {
  from_bf16(args.rows * 2 * args.width, args.gate_up, args.wide, stream);
  swiglu_backward({args.rows, args.width, args.wide, args.dy, args.wide}, stream);
  to_bf16(args.rows, 2 * args.width, args.wide, 2 * args.width, args.gate_up, stream);
}

void Kernels::gemm_gelu_forward(const GemmGeluArgs& args, Stream& stream) {
  const GemmArgs& product = args.product;
  const std::int64_t count = product.m * product.n;
  gemm(product, stream);
  if (product.bf16_operands)
    gelu_bf16_forward({count, product.c, args.y, args.hidden_bf16, args.y_bf16}, stream);
  else
    gelu_forward({count, product.c, args.y}, stream);
}

void Kernels::gemm_gelu_backward(const GemmGeluBackwardArgs& args, Stream& stream) {
  const GemmArgs& product = args.product;
  gemm(product, stream);
  gelu_backward({product.m * product.n, args.hidden, product.c, product.c}, stream);
  if (args.dbias != nullptr) add_column_sums(product.m, product.n, product.c, args.dbias, stream);
}

void Kernels::gelu_bf16_forward(const GeluBf16ForwardArgs& args, Stream& stream) {
  round_to_bf16(args.count, args.x, stream);
  if (args.hidden_bf16 != nullptr)
    to_bf16(1, args.count, args.x, args.count, args.hidden_bf16, stream);
  gelu_forward({args.count, args.x, args.y}, stream);
  to_bf16(1, args.count, args.y, args.count, args.y_bf16, stream);
}

void Kernels::residual_norm_forward(const ResidualNormArgs& args, Stream& stream) {
  residual_forward(args.residual, stream);
  norm_forward(args.norm, stream);
}

}  // namespace longspan::model
