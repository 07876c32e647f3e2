#include "model/linear.hpp"

namespace longspan::model {

Linear::Linear(ParameterStore& store, const std::vector<Part>& parts, std::int64_t inputs,
               bool bias, float standard_deviation, bool bf16, Backend backend)
    : store_(store), inputs_(inputs), has_bias_(bias), bf16_(bf16), backend_(backend) {
  for (const Part& part : parts) {
    const auto id =
        store.add(part.name + ".weight", {part.outputs, inputs}, {standard_deviation, 0.0f}, true);
    if (outputs_ == 0) weight_ = id;
    outputs_ += part.outputs;
  }
  if (!bias) return;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto id = store.add(parts[i].name + ".bias", {parts[i].outputs}, {}, false);
    if (i == 0) bias_ = id;
  }
}

void Linear::forward(View<const float> x, View<float> y) const {
  GemmArgs args;
  args.m = x.rows(), args.n = outputs_, args.k = inputs_;
  args.a = x.data(), args.lda = inputs_;
  args.b = store_.weight(weight_).data(), args.ldb = inputs_, args.trans_b = true;
  args.b_bf16 = store_.weight_bf16(weight_);
  args.c = y.data(), args.ldc = outputs_;
  args.bias = has_bias_ ? store_.weight(bias_).data() : nullptr;
  args.bf16_operands = bf16_;
  backend_.kernels.gemm(args, backend_.stream);
}

void Linear::backward(View<const float> dy, View<const float> x, View<float> dx) {
  if (!dx.empty()) {
    GemmArgs args;
    args.m = dy.rows(), args.n = inputs_, args.k = outputs_;
    args.a = dy.data(), args.lda = outputs_;
    args.b = store_.weight(weight_).data(), args.ldb = inputs_;
    args.b_bf16 = store_.weight_bf16(weight_);
    args.c = dx.data(), args.ldc = inputs_;
    args.bf16_operands = bf16_;
    backend_.kernels.gemm(args, backend_.stream);
  }
  GemmArgs args;
  args.m = outputs_, args.n = inputs_, args.k = dy.rows();
  args.a = dy.data(), args.lda = outputs_, args.trans_a = true;
  args.b = x.data(), args.ldb = inputs_;
  args.c = store_.gradient(weight_).data(), args.ldc = inputs_, args.accumulate = true;
  args.bf16_operands = bf16_;
  backend_.kernels.gemm(args, backend_.stream);
  if (has_bias_)
    backend_.kernels.add_column_sums(dy.rows(), outputs_, dy.data(), store_.gradient(bias_).data(),
                                     backend_.stream);
}

}  // namespace longspan::model
