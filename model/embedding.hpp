/// Token embedding, with a learned or sinusoidal (Vaswani et al. 2017) position table added to it,
/// and dropout. Tensor ranks share the token table by its rows.
#pragma once

#include <string>
#include <vector>

#include "model/layer.hpp"

namespace longspan::model {

class Embedding {
 public:
  Embedding(ParameterStore& store, const ModelConfig& config, Backend backend,
            const TensorShards& tensor = {});
  /// Makes the sinusoidal table for `length` positions; before the first forward.
  void prepare(std::int64_t length);

  /// x_ND = table[inputs] (+ position table), of the own rows. A padding token reads as token 0 at
  /// position 0. Collective over the tensor group, if there is one.
  void forward(View<float> x_ND, const PassContext& pass) const;
  /// dx_ND is the gradient of forward's result; it may be overwritten. Collective likewise.
  void backward(View<float> dx_ND, const PassContext& pass);
  /// x[rows, D] for tokens at consecutive positions from `first_position` on: decoding.
  void forward_tokens(View<const std::int32_t> ids, std::int64_t first_position,
                      View<float> x_ND) const;

  ParameterStore::Id table() const { return table_; }

 private:
  const float* position_table() const;
  /// Rows of this rank's part of the table for the inputs of all tokens; -1 = another rank's. For
  /// kernels, as long as the pass.
  const std::int32_t* own_ids(const PassContext& pass) const;
  void add_positions(View<float> x_ND, const PassContext& pass) const;
  Dropout dropout(const PassContext& pass) const;

  ParameterStore& store_;
  ModelConfig config_;
  DimPart vocabulary_;  ///< rows of the token table that this rank holds
  ParameterStore::Id table_, positions_ = 0;
  Buffer<float> sinusoids_;
  Backend backend_;
};

/// Adds the [V, D] matrix `name`, or this tensor rank's rows of it.
ParameterStore::Id add_vocabulary_matrix(ParameterStore& store, const std::string& name,
                                         const ModelConfig& config, const TensorShards& tensor);

}  // namespace longspan::model
