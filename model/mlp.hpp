/// The token-wise network of a block: GELU (up, down) or SwiGLU (gate and up, down; Shazeer 2020).
/// Works on a chunk of tokens at a time, forward and backward, whether or not it keeps anything: so
/// what exists between its products does not grow with the sequence, and recomputing gives the same
/// bits. F is this tensor rank's part of the MLP width; y is then one summand of the result.
#pragma once

#include <string>

#include "model/linear.hpp"

namespace longspan::model {

class Mlp {
 public:
  struct Saved {
    /// Before the activation: [N, F], or gate and up side by side [N, 2F]. What stands after it is
    /// computed again: that takes one pass over memory, and F of the 2F or 3F numbers a token.
    Activation hidden;
  };
  /// `chunk`: tokens at a time; 0 = default_mlp_chunk(config).
  Mlp(ParameterStore& store, const std::string& name, const ModelConfig& config,
      float output_deviation, std::int64_t chunk, Backend backend, const TensorShards& tensor = {});

  /// Without `saved` nothing is kept: evaluation, or backward computes it again.
  void forward(const Operand& x_ND, View<float> y_ND, Saved* saved) const;
  /// dx_ND = gradient of the input. Consumes `saved`; computes again what it does not hold.
  void backward(View<const float> dy_ND, const Operand& x_ND, Saved& saved, View<float> dx_ND);

 private:
  /// hidden = up(x), rounded with bf16: the activation sees what is kept.
  void project(const Operand& x_CD, View<float> hidden) const;
  /// product = activation(hidden), as the way down reads it: `rounded_CF` holds it with bf16.
  Operand activate(View<const float> hidden, View<float> product_CF,
                   const Activation& rounded_CF) const;

  /// The same from gate and up as they are kept with bf16; `wide` has room for them in fp32.
  Operand activate_kept(View<const std::uint16_t> gate_up, View<float> wide, View<float> product_CF,
                        const Activation& rounded_CF) const;

  MlpKind kind_;
  std::int64_t width_, chunk_;
  bool bf16_;
  Linear up_, down_;
  Backend backend_;
};

/// Tokens at a time when memory.mlp-chunk is 0: 64 MiB of what stands before the activation, but no
/// fewer than 1024 tokens, because each chunk passes once over the gradients of the weights.
std::int64_t default_mlp_chunk(const ModelConfig& config);

}  // namespace longspan::model
