#include "model/loss.hpp"

#include <algorithm>

namespace longspan::model {

std::int64_t default_loss_chunk(std::int64_t vocabulary) {
  return std::max<std::int64_t>(1024, (std::int64_t{64} << 20) / (4 * vocabulary));
}

VocabularyLoss::VocabularyLoss(ParameterStore& store, ParameterStore::Id weight,
                               const ModelConfig& config, std::int64_t chunk, Backend backend)
    : store_(store),
      weight_(weight),
      width_(config.width),
      vocabulary_(config.vocabulary),
      chunk_(chunk > 0 ? chunk : default_loss_chunk(config.vocabulary)),
      bf16_(config.precision == Precision::kBf16),
      backend_(backend) {}

void VocabularyLoss::logits(View<const float> x_ND, View<float> logits) const {
  GemmArgs args;
  args.m = x_ND.rows(), args.n = vocabulary_, args.k = width_;
  args.a = x_ND.data(), args.lda = width_;
  args.b = store_.weight(weight_).data(), args.ldb = width_, args.trans_b = true;
  args.b_bf16 = store_.weight_bf16(weight_);
  args.c = logits.data(), args.ldc = vocabulary_;
  args.bf16_operands = bf16_;
  backend_.kernels.gemm(args, backend_.stream);
}

double VocabularyLoss::forward_backward(View<const float> x_ND, View<const std::int32_t> targets_N,
                                        float gradient_scale, View<float> dx_ND) {
  const std::int64_t rows = x_ND.rows(), most = std::min(rows, chunk_);
  Buffer<float> logits_CV(backend_.device, most, vocabulary_);
  Buffer<float> losses_C(backend_.device, most);
  double sum = 0;
  for (std::int64_t first = 0; first < rows; first += most) {
    const std::int64_t count = std::min(most, rows - first);
    const View<float> chunk_logits = logits_CV.view().slice_rows(0, count);
    logits(x_ND.slice_rows(first, count), chunk_logits);

    CrossEntropyArgs loss;
    loss.rows = count, loss.vocabulary = vocabulary_, loss.row_stride = vocabulary_;
    loss.logits = chunk_logits.data(), loss.targets = targets_N.data() + first,
    loss.losses = losses_C.data();
    loss.backward = !dx_ND.empty(), loss.gradient_scale = gradient_scale;
    backend_.kernels.cross_entropy(loss, backend_.stream);
    backend_.stream.synchronize();
    for (std::int64_t i = 0; i < count; ++i) sum += losses_C[i];
    if (dx_ND.empty()) continue;

    GemmArgs dx;
    dx.m = count, dx.n = width_, dx.k = vocabulary_;
    dx.a = chunk_logits.data(), dx.lda = vocabulary_;
    dx.b = store_.weight(weight_).data(), dx.ldb = width_;
    dx.b_bf16 = store_.weight_bf16(weight_);
    dx.c = dx_ND.row(first), dx.ldc = width_;
    dx.bf16_operands = bf16_;
    backend_.kernels.gemm(dx, backend_.stream);
    GemmArgs dw;
    dw.m = vocabulary_, dw.n = width_, dw.k = count;
    dw.a = chunk_logits.data(), dw.lda = vocabulary_, dw.trans_a = true;
    dw.b = x_ND.row(first), dw.ldb = width_;
    dw.c = store_.gradient(weight_).data(), dw.ldc = width_, dw.accumulate = true;
    dw.bf16_operands = bf16_;
    backend_.kernels.gemm(dw, backend_.stream);
  }
  return sum;
}

}  // namespace longspan::model
