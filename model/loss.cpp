#include "model/loss.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "parallel/host_copy.hpp"

namespace longspan::model {
namespace {

constexpr std::int64_t kStatistics = 3;  // of a row, see kernels/loss.hpp

/// Of the ranks' statistics of `row`, those of the whole vocabulary; in rank order, in double.
/// Returns the row's loss. On the host.
double combine_statistics(View<const float> parts, std::int64_t row, std::int64_t rows,
                          std::int64_t ranks, float* whole) {
  double maximum = parts.row(row)[0], sum = 0, target = 0;
  for (std::int64_t rank = 1; rank < ranks; ++rank)
    maximum = std::max<double>(maximum, parts.row(rank * rows + row)[0]);
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const float* part = parts.row(rank * rows + row);
    sum += static_cast<double>(part[1]) * std::exp(static_cast<double>(part[0]) - maximum);
    target += static_cast<double>(part[2]);  // zero on all ranks but one
  }
  whole[0] = static_cast<float>(maximum), whole[1] = static_cast<float>(sum);
  return std::log(sum) - (target - maximum);
}

}  // namespace

std::int64_t default_loss_chunk(std::int64_t vocabulary) {
  return std::max<std::int64_t>(1024, (std::int64_t{64} << 20) / (4 * vocabulary));
}

VocabularyLoss::VocabularyLoss(ParameterStore& store, ParameterStore::Id weight,
                               const ModelConfig& config, std::int64_t chunk, Backend backend,
                               const TensorShards& tensor)
    : store_(store),
      weight_(weight),
      tensor_(tensor),
      width_(config.width),
      first_id_(tensor.part_of(config.vocabulary).begin),
      vocabulary_(tensor.part_of(config.vocabulary).count),
      chunk_(chunk > 0 ? chunk : default_loss_chunk(vocabulary_)),
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

void VocabularyLoss::input_gradient(View<const float> dlogits, View<float> dx_ND) const {
  GemmArgs dx;
  dx.m = dlogits.rows(), dx.n = width_, dx.k = vocabulary_;
  dx.a = dlogits.data(), dx.lda = vocabulary_;
  dx.b = store_.weight(weight_).data(), dx.ldb = width_;
  dx.b_bf16 = store_.weight_bf16(weight_);
  dx.c = dx_ND.data(), dx.ldc = width_;
  dx.bf16_operands = bf16_;
  backend_.kernels.gemm(dx, backend_.stream);
}

void VocabularyLoss::accumulate_weight_gradient(View<const float> dlogits, View<const float> x_ND) {
  GemmArgs dw;
  dw.m = vocabulary_, dw.n = width_, dw.k = dlogits.rows();
  dw.a = dlogits.data(), dw.lda = vocabulary_, dw.trans_a = true;
  dw.b = x_ND.data(), dw.ldb = width_;
  dw.c = store_.gradient(weight_).data(), dw.ldc = width_, dw.accumulate = true;
  dw.bf16_operands = bf16_;
  backend_.kernels.gemm(dw, backend_.stream);
}

double VocabularyLoss::forward_backward(View<const float> x_ND, View<const std::int32_t> targets_N,
                                        float gradient_scale, View<float> dx_ND,
                                        std::int64_t sequences) {
  if (!tensor_.alone())
    return forward_backward_shared(x_ND, targets_N, gradient_scale, dx_ND, sequences);
  const std::int64_t rows = x_ND.rows(), most = std::min(rows, chunk_);
  const Uploaded<std::int32_t> targets(backend_.device, backend_.stream, targets_N);
  Buffer<float> logits_CV(backend_.device, most, vocabulary_);
  Buffer<float> losses_N(backend_.device, rows);
  for (std::int64_t first = 0; first < rows; first += most) {
    const std::int64_t count = std::min(most, rows - first);
    const View<float> chunk_logits = logits_CV.view().slice_rows(0, count);
    logits(x_ND.slice_rows(first, count), chunk_logits);

    CrossEntropyArgs loss;
    loss.rows = count, loss.vocabulary = vocabulary_, loss.row_stride = vocabulary_;
    loss.logits = chunk_logits.data(), loss.targets = targets.data() + first;
    loss.losses = losses_N.data() + first;
    loss.backward = !dx_ND.empty(), loss.gradient_scale = gradient_scale;
    backend_.kernels.cross_entropy(loss, backend_.stream);
    if (dx_ND.empty()) continue;

    input_gradient(chunk_logits, dx_ND.slice_rows(first, count));
    accumulate_weight_gradient(chunk_logits, x_ND.slice_rows(first, count));
  }
  // The only moment at which the host waits for the forward pass.
  const OnHost<float> losses(backend_.device, backend_.stream, losses_N);
  double sum = 0;
  for (const float row_loss : losses.view()) sum += row_loss;
  return sum;
}

std::vector<std::int32_t> VocabularyLoss::gathered_targets(View<const std::int32_t> targets_N,
                                                           std::int64_t rows, std::int64_t tokens,
                                                           std::int64_t most) const {
  const std::int64_t ranks = tensor_.ranks;
  std::vector<std::int32_t> targets;
  targets.reserve(static_cast<std::size_t>(ranks * rows));
  for (std::int64_t first = 0; first < rows; first += most)
    for (std::int64_t rank = 0; rank < ranks; ++rank)
      for (std::int64_t row = first; row < std::min(first + most, rows); ++row) {
        const std::int64_t target =
            targets_N[(row / tokens * ranks + rank) * tokens + row % tokens];
        const std::int64_t id = target - first_id_;
        const bool here = id >= 0 && id < vocabulary_;
        targets.push_back(static_cast<std::int32_t>(target < 0 ? -1 : here ? id : vocabulary_));
      }
  return targets;
}

double VocabularyLoss::forward_backward_shared(View<const float> x_ND,
                                               View<const std::int32_t> targets_N,
                                               float gradient_scale, View<float> dx_ND,
                                               std::int64_t sequences) {
  const std::int64_t ranks = tensor_.ranks, rows = x_ND.rows(), tokens = rows / sequences;
  const std::int64_t most = std::min(rows, std::max<std::int64_t>(1, chunk_ / ranks));
  Buffer<float> gathered_CD(backend_.device, ranks * most, width_);
  Buffer<float> logits_CV(backend_.device, ranks * most, vocabulary_);
  Buffer<float> mine_C3(backend_.device, ranks * most, kStatistics);
  Buffer<float> parts_C3(backend_.device, ranks * ranks * most, kStatistics);
  const std::vector<std::int32_t> targets = gathered_targets(targets_N, rows, tokens, most);
  const Uploaded<std::int32_t> uploaded(
      backend_.device, backend_.stream,
      View<const std::int32_t>(targets.data(), static_cast<std::int64_t>(targets.size())));
  double sum = 0;
  for (std::int64_t first = 0; first < rows; first += most) {
    const std::int64_t count = std::min(most, rows - first), all = ranks * count;
    const View<float> x = gathered_CD.view().slice_rows(0, all),
                      logits_part = logits_CV.view().slice_rows(0, all),
                      mine = mine_C3.view().slice_rows(0, all),
                      parts = parts_C3.view().slice_rows(0, ranks * all);
    tensor_.group->all_gather(x_ND.slice_rows(first, count), x)->wait();
    logits(x, logits_part);

    CrossEntropyArgs loss;
    loss.rows = all, loss.vocabulary = vocabulary_, loss.row_stride = vocabulary_;
    loss.logits = logits_part.data(), loss.targets = uploaded.data() + ranks * first;
    loss.gradient_scale = gradient_scale;
    loss.pass = CrossEntropyPass::kStatistics, loss.statistics = mine.data();
    backend_.kernels.cross_entropy(loss, backend_.stream);
    tensor_.group->all_gather(mine, parts)->wait();
    const OnHost<float> statistics(backend_.device, backend_.stream, parts);
    write_from_host(backend_.device, backend_.stream, mine, [&](View<float> whole) {
      for (std::int64_t row = 0; row < all; ++row) {
        if (targets[static_cast<std::size_t>(ranks * first + row)] < 0) continue;
        const double row_loss =
            combine_statistics(statistics.view(), row, all, ranks, whole.row(row));
        if (row / count == tensor_.index) sum += row_loss;
      }
    });
    if (dx_ND.empty()) continue;

    loss.pass = CrossEntropyPass::kGradient;
    backend_.kernels.cross_entropy(loss, backend_.stream);
    accumulate_weight_gradient(logits_part, x);
    input_gradient(logits_part, x);  // nobody needs the gathered rows any more
    tensor_.group->reduce_scatter_sum(x, dx_ND.slice_rows(first, count))->wait();
  }
  return sum;
}

}  // namespace longspan::model
