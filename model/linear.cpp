#include "model/linear.hpp"

#include <utility>

namespace longspan::model {

Linear::Linear(ParameterStore& store, const std::vector<Part>& parts, DimPart inputs, bool bias,
               float standard_deviation, bool bf16, Backend backend)
    : store_(store),
      inputs_(inputs.count),
      adds_bias_(bias && inputs.begin == 0),
      bf16_(bf16),
      backend_(backend) {
  for (const auto& [name, outputs] : parts) {
    Parameter weight;
    weight.name = name + ".weight";
    weight.shape = {outputs.count, inputs.count};
    weight.global_shape = {outputs.total, inputs.total};
    weight.block_offset = {outputs.begin, inputs.begin};
    weight.initial = {standard_deviation, 0.0f};
    weight.decay = true;
    const auto id = store.add(std::move(weight));
    if (outputs_ == 0) weight_ = id;
    outputs_ += outputs.count;
  }
  if (!bias) return;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Parameter vector;
    vector.name = parts[i].name + ".bias";
    vector.shape = {parts[i].outputs.count};
    vector.global_shape = {parts[i].outputs.total};
    vector.block_offset = {parts[i].outputs.begin};
    const auto id = store.add(std::move(vector));
    if (i == 0) bias_ = id;
  }
}

void Linear::forward(View<const float> x, View<float> y) const {
  GemmArgs args;
  args.m = x.rows(), args.n = outputs_, args.k = inputs_;
  args.a = x.data(), args.lda = inputs_;
  args.b = store_.weight(weight_).data(), args.ldb = inputs_, args.trans_b = true;
  args.c = y.data(), args.ldc = outputs_;
  args.bias = adds_bias_ ? store_.weight(bias_).data() : nullptr;
  args.bf16_operands = bf16_;
  backend_.kernels.gemm(args, backend_.stream);
}

void Linear::backward(View<const float> dy, View<const float> x, View<float> dx) {
  if (!dx.empty()) {
    GemmArgs args;
    args.m = dy.rows(), args.n = inputs_, args.k = outputs_;
    args.a = dy.data(), args.lda = outputs_;
    args.b = store_.weight(weight_).data(), args.ldb = inputs_;
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
  if (adds_bias_)
    backend_.kernels.add_column_sums(dy.rows(), outputs_, dy.data(), store_.gradient(bias_).data(),
                                     backend_.stream);
}

}  // namespace longspan::model
