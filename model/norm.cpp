#include "model/norm.hpp"

namespace longspan::model {

Norm::Norm(ParameterStore& store, const std::string& name, const ModelConfig& config,
           Backend backend)
    : store_(store),
      rms_(config.norm == NormKind::kRmsNorm),
      epsilon_(config.norm_epsilon),
      backend_(backend) {
  weight_ = store.add(name + ".weight", {config.width}, {0.0f, 1.0f}, false);
  if (!rms_) bias_ = store.add(name + ".bias", {config.width}, {}, false);
}

NormForwardArgs Norm::forward_args(View<const float> x_ND, View<float> y_ND, Saved* saved) const {
  NormForwardArgs args;
  args.rows = x_ND.rows(), args.width = x_ND.cols(), args.rms = rms_, args.eps = epsilon_;
  args.x = x_ND.data(), args.y = y_ND.data();
  args.weight = store_.weight(weight_).data();
  args.bias = rms_ ? nullptr : store_.weight(bias_).data();
  if (saved != nullptr) {
    saved->rstd_N = Buffer<float>(backend_.device, args.rows);
    if (!rms_) saved->mean_N = Buffer<float>(backend_.device, args.rows);
    args.rstd = saved->rstd_N.data();
    args.mean = saved->mean_N.data();
  }
  return args;
}

void Norm::forward(View<const float> x_ND, View<float> y_ND, Saved* saved) const {
  backend_.kernels.norm_forward(forward_args(x_ND, y_ND, saved), backend_.stream);
}

void Norm::forward_sum(View<const float> residual_ND, View<const float> branch_ND,
                       const Dropout& dropout, View<float> x_ND, View<float> y_ND,
                       Saved* saved) const {
  backend_.kernels.residual_norm_forward(
      {{x_ND.rows(), x_ND.cols(), residual_ND.data(), branch_ND.data(), x_ND.data(), dropout},
       forward_args(x_ND, y_ND, saved)},
      backend_.stream);
}

void Norm::backward(View<const float> dy_ND, View<const float> x_ND, const Saved& saved,
                    View<float> dx_ND) {
  NormBackwardArgs args;
  args.rows = x_ND.rows(), args.width = x_ND.cols(), args.rms = rms_;
  args.dy = dy_ND.data(), args.x = x_ND.data();
  args.weight = store_.weight(weight_).data();
  args.mean = saved.mean_N.data(), args.rstd = saved.rstd_N.data();
  args.dx = dx_ND.data(), args.accumulate_dx = true;
  args.dweight = store_.gradient(weight_).data();
  args.dbias = rms_ ? nullptr : store_.gradient(bias_).data();
  backend_.kernels.norm_backward(args, backend_.stream);
}

}  // namespace longspan::model
