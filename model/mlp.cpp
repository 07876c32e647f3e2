#include "model/mlp.hpp"

#include <algorithm>

namespace longspan::model {
namespace {

std::vector<Linear::Part> input_parts(const std::string& name, const ModelConfig& config,
                                      DimPart width) {
  if (config.mlp == MlpKind::kGelu) return {{name + ".up", width}};
  return {{name + ".gate", width}, {name + ".up", width}};
}

}  // namespace

std::int64_t default_mlp_chunk(const ModelConfig& config) {
  const std::int64_t hidden =
      config.mlp == MlpKind::kGelu ? config.mlp_width : 2 * config.mlp_width;
  return std::max<std::int64_t>(1024, (std::int64_t{64} << 20) / (4 * hidden));
}

Mlp::Mlp(ParameterStore& store, const std::string& name, const ModelConfig& config,
         float output_deviation, std::int64_t chunk, Backend backend, const TensorShards& tensor)
    : kind_(config.mlp),
      width_(tensor.part_of(config.mlp_width).count),
      chunk_(chunk > 0 ? chunk : default_mlp_chunk(config)),
      bf16_(config.precision == Precision::kBf16),
      up_(store, input_parts(name, config, tensor.part_of(config.mlp_width)), config.width,
          config.bias, 0.02f, bf16_, backend),
      down_(store, {{name + ".down", config.width}}, tensor.part_of(config.mlp_width), config.bias,
            output_deviation, bf16_, backend),
      backend_(backend) {}

void Mlp::project(const Operand& x_CD, View<float> hidden) const {
  up_.forward(x_CD, hidden);
  if (bf16_) backend_.kernels.round_to_bf16(hidden.size(), hidden.data(), backend_.stream);
}

Operand Mlp::activate(View<const float> hidden, View<float> product_CF,
                      const Activation& rounded_CF) const {
  if (kind_ == MlpKind::kGelu)
    backend_.kernels.gelu_forward({hidden.size(), hidden.data(), product_CF.data()},
                                  backend_.stream);
  else
    backend_.kernels.swiglu_forward({hidden.rows(), width_, hidden.data(), product_CF.data()},
                                    backend_.stream);
  if (!bf16_) return product_CF;
  rounded_CF.store(0, product_CF, backend_);
  return rounded_CF.operand().slice_rows(0, product_CF.rows());
}

Operand Mlp::activate_kept(View<const std::uint16_t> gate_up, View<float> wide,
                           View<float> product_CF, const Activation& rounded_CF) const {
  const std::int64_t rows = gate_up.rows();
  const View<std::uint16_t> y = rounded_CF.bf16_rows(0, rows);
  backend_.kernels.swiglu_bf16_forward(
      {rows, width_, gate_up.data(), y.data(), wide.data(), product_CF.data()}, backend_.stream);
  return rounded_CF.operand().slice_rows(0, rows);
}

void Mlp::forward(const Operand& x_ND, View<float> y_ND, Saved* saved) const {
  const std::int64_t rows = x_ND.rows(), most = std::min(rows, chunk_);
  Saved kept;
  if (saved != nullptr) kept.hidden = Activation(rows, up_.outputs(), bf16_, backend_);
  // In fp32 what is kept is computed in its place.
  const bool in_place = saved != nullptr && !bf16_;
  Buffer<float> hidden, product_CF(backend_.device, most, width_);
  if (!in_place) hidden = Buffer<float>(backend_.device, most, up_.outputs());
  const Activation rounded_CF = bf16_ ? Activation(most, width_, true, backend_) : Activation();
  for (std::int64_t first = 0; first < rows; first += most) {
    const std::int64_t count = std::min(most, rows - first);
    const View<float> h =
        in_place ? kept.hidden.fp32_rows(first, count) : hidden.view().slice_rows(0, count);
    const Operand x = x_ND.slice_rows(first, count);
    const View<float> product = product_CF.view().slice_rows(0, count),
                      y = y_ND.slice_rows(first, count);
    if (kind_ == MlpKind::kGelu) {
      up_.forward_gelu(
          x, h, product,
          saved == nullptr ? View<std::uint16_t>() : kept.hidden.bf16_rows(first, count),
          rounded_CF.bf16_rows(0, count));
      down_.forward(bf16_ ? rounded_CF.operand().slice_rows(0, count) : product, y);
      continue;
    }
    if (saved != nullptr && bf16_) {
      const View<std::uint16_t> gate_up = kept.hidden.bf16_rows(first, count);
      up_.forward_to_bf16(x, h, gate_up);
      down_.forward(activate_kept(gate_up, h, product, rounded_CF), y);
      continue;
    }
    project(x, h);
    down_.forward(activate(h, product, rounded_CF), y);
  }
  if (saved != nullptr) *saved = std::move(kept);
}

void Mlp::backward(View<const float> dy_ND, const Operand& x_ND, Saved& saved, View<float> dx_ND) {
  const std::int64_t rows = x_ND.rows(), most = std::min(rows, chunk_);
  const bool kept = !saved.hidden.empty(), in_place = kept && !bf16_;
  Buffer<float> dproduct_CF(backend_.device, most, width_), hidden,
      product_CF(backend_.device, most, width_);
  if (!in_place) hidden = Buffer<float>(backend_.device, most, up_.outputs());
  const Activation rounded_CF = bf16_ ? Activation(most, width_, true, backend_) : Activation();
  for (std::int64_t first = 0; first < rows; first += most) {
    const std::int64_t count = std::min(most, rows - first);
    const Operand x = x_ND.slice_rows(first, count);
    const View<float> h =
        in_place ? saved.hidden.fp32_rows(first, count) : hidden.view().slice_rows(0, count);
    const View<float> dproduct = dproduct_CF.view().slice_rows(0, count);
    const View<const float> dy = dy_ND.slice_rows(first, count);
    const View<float> dx = dx_ND.slice_rows(first, count);
    if (kept && bf16_ && kind_ == MlpKind::kSwiglu && !up_.adds_bias()) {
      // The gradients take the place of what was kept. A bias would want them unrounded.
      const View<std::uint16_t> gate_up = saved.hidden.bf16_rows(first, count);
      down_.backward(dy,
                     activate_kept(gate_up, h, product_CF.view().slice_rows(0, count), rounded_CF),
                     dproduct);
      backend_.kernels.swiglu_bf16_backward(
          {count, width_, gate_up.data(), dproduct.data(), h.data()}, backend_.stream);
      up_.backward_rounded(gate_up, x, dx);
      continue;
    }
    if (!kept)
      project(x, h);
    else if (bf16_)
      saved.hidden.load(first, h, backend_);
    const Operand product = activate(h, product_CF.view().slice_rows(0, count), rounded_CF);
    // GELU's gradient replaces the product's; SwiGLU's, twice as wide, replaces hidden.
    if (kind_ == MlpKind::kGelu) {
      down_.backward_gelu(dy, product, h, up_, dproduct);
      up_.backward_weights(dproduct, x, dx);
      continue;
    }
    down_.backward(dy, product, dproduct);
    backend_.kernels.swiglu_backward({count, width_, h.data(), dproduct.data(), h.data()},
                                     backend_.stream);
    up_.backward(h, x, dx);
  }
}

}  // namespace longspan::model
