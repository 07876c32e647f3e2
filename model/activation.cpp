#include "model/activation.hpp"

namespace longspan::model {

Activation::Activation(std::int64_t rows, std::int64_t cols, bool bf16, Backend backend) {
  if (bf16)
    bf16_ = Buffer<std::uint16_t>(backend.device, rows, cols);
  else
    fp32_ = Buffer<float>(backend.device, rows, cols);
}

Activation::Activation(Buffer<float> x, bool bf16, Backend backend) {
  if (!bf16 || x.empty()) {
    fp32_ = std::move(x);
    return;
  }
  bf16_ = Buffer<std::uint16_t>(backend.device, x.rows(), x.cols());
  store(0, x, backend);
}

Operand Activation::operand() const {
  return bf16_.empty() ? Operand(fp32_) : Operand(View<const std::uint16_t>(bf16_));
}

View<float> Activation::fp32_rows(std::int64_t first, std::int64_t count) const {
  return fp32_.empty() ? View<float>() : fp32_.view().slice_rows(first, count);
}

View<std::uint16_t> Activation::bf16_rows(std::int64_t first, std::int64_t count) const {
  return bf16_.empty() ? View<std::uint16_t>() : bf16_.view().slice_rows(first, count);
}

void Activation::store(std::int64_t first, View<const float> x, Backend backend) const {
  backend.kernels.to_bf16(x.rows(), x.cols(), x.data(), x.cols(), bf16_.view().row(first),
                          backend.stream);
}

void Activation::load(std::int64_t first, View<float> x, Backend backend) const {
  backend.kernels.from_bf16(x.size(), bf16_.view().row(first), x.data(), backend.stream);
}

Buffer<float> Activation::take(Backend backend) {
  if (bf16_.empty()) return std::move(fp32_);
  Buffer<float> x(backend.device, bf16_.rows(), bf16_.cols());
  load(0, x, backend);
  bf16_.clear();
  return x;
}

}  // namespace longspan::model
