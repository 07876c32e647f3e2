/// The token-wise network of a block: GELU (up, down) or SwiGLU (gate and up, down; Shazeer 2020).
/// F is this tensor rank's part of the MLP width; y is then one summand of the result.
#pragma once

#include <string>

#include "model/linear.hpp"

namespace longspan::model {

class Mlp {
 public:
  struct Saved {
    Buffer<float> hidden;  ///< before the activation: [N, F], or gate and up side by side [N, 2F]
    Buffer<float> product_NF;  ///< after it
  };
  Mlp(ParameterStore& store, const std::string& name, const ModelConfig& config,
      float output_deviation, Backend backend, const TensorShards& tensor = {});

  void forward(View<const float> x_ND, View<float> y_ND, Saved& saved) const;
  /// Only what backward needs: fills `saved`, leaves the last product out.
  void activate(View<const float> x_ND, Saved& saved) const;
  /// dx_ND = gradient of the input. Consumes `saved`: its hidden buffer is overwritten.
  void backward(View<const float> dy_ND, View<const float> x_ND, Saved& saved, View<float> dx_ND);

 private:
  MlpKind kind_;
  std::int64_t width_;
  Linear up_, down_;
  Backend backend_;
};

}  // namespace longspan::model
