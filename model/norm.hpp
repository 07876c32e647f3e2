/// LayerNorm or RMSNorm over D, by configuration.
#pragma once

#include <string>

#include "model/layer.hpp"

namespace longspan::model {

class Norm {
 public:
  struct Saved {
    Buffer<float> mean_N, rstd_N;  ///< mean is empty for RMSNorm
  };
  Norm(ParameterStore& store, const std::string& name, const ModelConfig& config, Backend backend);

  /// y_ND = norm(x_ND). Without Saved: evaluation only.
  void forward(View<const float> x_ND, View<float> y_ND, Saved* saved) const;
  /// The same with x_ND = residual_ND + dropout(branch_ND), which is written first; x_ND may be
  /// either of the two. One pass over memory.
  void forward_sum(View<const float> residual_ND, View<const float> branch_ND,
                   const Dropout& dropout, View<float> x_ND, View<float> y_ND, Saved* saved) const;
  /// dx_ND += gradient through the norm: the residual path is already in dx.
  void backward(View<const float> dy_ND, View<const float> x_ND, const Saved& saved,
                View<float> dx_ND);

 private:
  NormForwardArgs forward_args(View<const float> x_ND, View<float> y_ND, Saved* saved) const;

  ParameterStore& store_;
  ParameterStore::Id weight_, bias_ = 0;
  bool rms_;
  float epsilon_;
  Backend backend_;
};

}  // namespace longspan::model
