/// Token embedding, with a learned or sinusoidal (Vaswani et al. 2017) position table added to it,
/// and dropout.
#pragma once

#include "model/layer.hpp"

namespace longspan::model {

class Embedding {
 public:
  Embedding(ParameterStore& store, const ModelConfig& config, Backend backend);
  /// Makes the sinusoidal table for `length` positions; before the first forward.
  void prepare(std::int64_t length);

  /// x_ND = table[inputs] (+ position table). A padding token reads as token 0 at position 0.
  void forward(View<float> x_ND, const PassContext& pass) const;
  /// dx_ND is the gradient of forward's result; it may be overwritten.
  void backward(View<float> dx_ND, const PassContext& pass);
  /// x[rows, D] for tokens at consecutive positions from `first_position` on: decoding.
  void forward_tokens(View<const std::int32_t> ids, std::int64_t first_position,
                      View<float> x_ND) const;

  ParameterStore::Id table() const { return table_; }

 private:
  const float* position_table() const;
  Dropout dropout(const PassContext& pass) const;

  ParameterStore& store_;
  ModelConfig config_;
  ParameterStore::Id table_, positions_ = 0;
  Buffer<float> sinusoids_;
  Backend backend_;
};

}  // namespace longspan::model
