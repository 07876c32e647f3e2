#include "model/linear.hpp"

#include <algorithm>
#include <utility>

namespace longspan::model {
namespace {

/// Rows or columns of dy that are rounded at a time: equal blocks of at most 4096, the longest sum
/// that a product of bfloat16 numbers takes at once (kernels/cpu/gemm.cpp).
std::int64_t block_length(std::int64_t total) {
  constexpr std::int64_t kLargest = 4096;
  const std::int64_t blocks = std::max<std::int64_t>((total + kLargest - 1) / kLargest, 1);
  return (total + blocks - 1) / blocks;
}

}  // namespace

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

GemmArgs Linear::forward_args(const Operand& x, float* y) const {
  GemmArgs args;
  args.m = x.rows(), args.n = outputs_, args.k = inputs_;
  args.a = x.fp32.data(), args.a_bf16 = x.bf16.data(), args.lda = inputs_;
  args.b = store_.weight(weight_).data(), args.ldb = inputs_, args.trans_b = true;
  args.b_bf16 = store_.weight_bf16(weight_);
  args.c = y, args.ldc = outputs_;
  args.bias = adds_bias_ ? store_.weight(bias_).data() : nullptr;
  args.bf16_operands = bf16_;
  return args;
}

void Linear::forward(const Operand& x, View<float> y) const {
  backend_.kernels.gemm(forward_args(x, y.data()), backend_.stream);
}

void Linear::forward_to_bf16(const Operand& x, View<float> room, View<std::uint16_t> y) const {
  backend_.kernels.gemm_to_bf16({forward_args(x, room.data()), y.data()}, backend_.stream);
}

void Linear::forward_gelu(const Operand& x, View<float> hidden, View<float> y,
                          View<std::uint16_t> hidden_bf16, View<std::uint16_t> y_bf16) const {
  backend_.kernels.gemm_gelu_forward(
      {forward_args(x, hidden.data()), y.data(), hidden_bf16.data(), y_bf16.data()},
      backend_.stream);
}

void Linear::backward(View<const float> dy, const Operand& x, View<float> dx) {
  if (dbias() != nullptr)
    backend_.kernels.add_column_sums(dy.rows(), outputs_, dy.data(), dbias(), backend_.stream);
  backward_weights(dy, x, dx, {});
}

void Linear::backward_weights(View<const float> dy, const Operand& x, View<float> dx) {
  backward_weights(dy, x, dx, {});
}

void Linear::backward_gelu(View<const float> dy, const Operand& x, View<const float> hidden,
                           Linear& before, View<float> dx) {
  if (dbias() != nullptr)
    backend_.kernels.add_column_sums(dy.rows(), outputs_, dy.data(), dbias(), backend_.stream);
  // Rows in one block: their product may take the sums for the bias along. In several the sums are
  // taken afterwards, of all rows at once, so that their order does not depend on the blocks.
  const bool together = !bf16_ || dy.rows() <= block_length(dy.rows());
  backward_weights(dy, x, dx, {hidden, together ? before.dbias() : nullptr});
  if (!together && before.dbias() != nullptr)
    backend_.kernels.add_column_sums(dx.rows(), inputs_, dx.data(), before.dbias(),
                                     backend_.stream);
}

void Linear::backward_weights(View<const float> dy, const Operand& x, View<float> dx,
                              const Before& before) {
  if (!bf16_) {
    products(dy.data(), nullptr, outputs_, 0, outputs_, x, dx, before);
    return;
  }
  // Both products read dy: it is rounded once, a block at a time, so that the rounded numbers stay
  // small however long the sequence.
  const std::int64_t most_rows = block_length(dy.rows()), most_outputs = block_length(outputs_);
  const Buffer<std::uint16_t> rounded(backend_.device, most_rows, most_outputs);
  for (std::int64_t row = 0; row < dy.rows(); row += most_rows)
    for (std::int64_t output = 0; output < outputs_; output += most_outputs) {
      const std::int64_t rows = std::min(most_rows, dy.rows() - row),
                         outputs = std::min(most_outputs, outputs_ - output);
      backend_.kernels.to_bf16(rows, outputs, dy.row(row) + output, outputs_, rounded.data(),
                               backend_.stream);
      products(nullptr, rounded.data(), outputs, output, outputs, x.slice_rows(row, rows),
               dx.empty() ? dx : dx.slice_rows(row, rows), before.rows(row, rows));
    }
}

void Linear::backward_rounded(View<const std::uint16_t> dy, const Operand& x, View<float> dx) {
  // The blocks of backward_weights(), and as there without gaps between their rows.
  const std::int64_t most_rows = block_length(dy.rows()), most_outputs = block_length(outputs_);
  const bool gaps = most_outputs < outputs_;
  const Buffer<std::uint16_t> block =
      gaps ? Buffer<std::uint16_t>(backend_.device, most_rows, most_outputs)
           : Buffer<std::uint16_t>();
  for (std::int64_t row = 0; row < dy.rows(); row += most_rows)
    for (std::int64_t output = 0; output < outputs_; output += most_outputs) {
      const std::int64_t rows = std::min(most_rows, dy.rows() - row),
                         outputs = std::min(most_outputs, outputs_ - output);
      const std::uint16_t* from = dy.row(row) + output;
      if (gaps) {
        const auto word = sizeof(std::uint16_t);
        backend_.device.copy_rows(block.data(), static_cast<std::size_t>(outputs) * word, from,
                                  static_cast<std::size_t>(outputs_) * word,
                                  static_cast<std::size_t>(outputs) * word, rows, backend_.stream);
        from = block.data();
      }
      products(nullptr, from, outputs, output, outputs, x.slice_rows(row, rows),
               dx.empty() ? dx : dx.slice_rows(row, rows), {});
    }
}

void Linear::products(const float* dy, const std::uint16_t* dy_bf16, std::int64_t dy_row,
                      std::int64_t output, std::int64_t outputs, const Operand& x, View<float> dx,
                      const Before& before) {
  if (!dx.empty()) {
    GemmArgs args;
    args.m = x.rows(), args.n = inputs_, args.k = outputs;
    args.a = dy, args.a_bf16 = dy_bf16, args.lda = dy_row;
    args.b = store_.weight(weight_).data() + output * inputs_, args.ldb = inputs_;
    const std::uint16_t* weight_bf16 = store_.weight_bf16(weight_);
    args.b_bf16 = weight_bf16 == nullptr ? nullptr : weight_bf16 + output * inputs_;
    args.c = dx.data(), args.ldc = inputs_, args.accumulate = output > 0;
    args.bf16_operands = bf16_;
    // GELU's slope belongs to the whole sum over the outputs.
    if (!before.hidden.empty() && output + outputs == outputs_)
      backend_.kernels.gemm_gelu_backward({args, before.hidden.data(), before.dbias},
                                          backend_.stream);
    else
      backend_.kernels.gemm(args, backend_.stream);
  }
  GemmArgs args;
  args.m = outputs, args.n = inputs_, args.k = x.rows();
  args.a = dy, args.a_bf16 = dy_bf16, args.lda = dy_row, args.trans_a = true;
  args.b = x.fp32.data(), args.b_bf16 = x.bf16.data(), args.ldb = inputs_;
  args.c = store_.gradient(weight_).data() + output * inputs_, args.ldc = inputs_;
  args.accumulate = true;
  args.bf16_operands = bf16_;
  backend_.kernels.gemm(args, backend_.stream);
}

}  // namespace longspan::model
