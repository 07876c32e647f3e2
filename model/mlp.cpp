#include "model/mlp.hpp"

namespace longspan::model {
namespace {

std::vector<Linear::Part> input_parts(const std::string& name, const ModelConfig& config,
                                      DimPart width) {
  if (config.mlp == MlpKind::kGelu) return {{name + ".up", width}};
  return {{name + ".gate", width}, {name + ".up", width}};
}

}  // namespace

Mlp::Mlp(ParameterStore& store, const std::string& name, const ModelConfig& config,
         float output_deviation, Backend backend, const TensorShards& tensor)
    : kind_(config.mlp),
      width_(tensor.part_of(config.mlp_width).count),
      up_(store, input_parts(name, config, tensor.part_of(config.mlp_width)), config.width,
          config.bias, 0.02f, config.precision == Precision::kBf16, backend),
      down_(store, {{name + ".down", config.width}}, tensor.part_of(config.mlp_width), config.bias,
            output_deviation, config.precision == Precision::kBf16, backend),
      backend_(backend) {}

void Mlp::activate(View<const float> x_ND, Saved& saved) const {
  const std::int64_t rows = x_ND.rows();
  saved.hidden = Buffer<float>(backend_.device, rows, up_.outputs());
  saved.product_NF = Buffer<float>(backend_.device, rows, width_);
  up_.forward(x_ND, saved.hidden);
  if (kind_ == MlpKind::kGelu)
    backend_.kernels.gelu_forward({rows * width_, saved.hidden.data(), saved.product_NF.data()},
                                  backend_.stream);
  else
    backend_.kernels.swiglu_forward({rows, width_, saved.hidden.data(), saved.product_NF.data()},
                                    backend_.stream);
}

void Mlp::forward(View<const float> x_ND, View<float> y_ND, Saved& saved) const {
  activate(x_ND, saved);
  down_.forward(saved.product_NF, y_ND);
}

void Mlp::backward(View<const float> dy_ND, View<const float> x_ND, Saved& saved,
                   View<float> dx_ND) {
  const std::int64_t rows = x_ND.rows();
  Buffer<float> dproduct_NF(backend_.device, rows, width_);
  down_.backward(dy_ND, saved.product_NF, dproduct_NF);
  saved.product_NF.clear();
  if (kind_ == MlpKind::kGelu) {
    backend_.kernels.gelu_backward(
        {rows * width_, saved.hidden.data(), dproduct_NF.data(), dproduct_NF.data()},
        backend_.stream);
    up_.backward(dproduct_NF, x_ND, dx_ND);
  } else {
    backend_.kernels.swiglu_backward(
        {rows, width_, saved.hidden.data(), dproduct_NF.data(), saved.hidden.data()},
        backend_.stream);
    dproduct_NF.clear();
    up_.backward(saved.hidden, x_ND, dx_ND);
  }
}

}  // namespace longspan::model
