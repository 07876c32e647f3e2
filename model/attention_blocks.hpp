/// A rank's queries against blocks of keys, in any order: what all schemes that leave the queries
/// where they are have in common. None of this communicates. Read next: kernels/attention.hpp.
#pragma once

#include "model/attention_scheme.hpp"

namespace longspan::model {

/// Keys and values of one rank: parts of the packed qkv rows at home, [N, 2 * G * K] rows
/// elsewhere.
struct KeyBlock {
  const float* keys;
  const float* values;
  std::int64_t row;
};

/// The rank's own keys and values, where they lie in qkv.
KeyBlock home_block(const AttentionGeometry& geometry, View<const float> qkv);
/// Rows of keys and values side by side, as they travel.
KeyBlock packed_block(const AttentionGeometry& geometry, const float* packed);
/// [N, 2 * G * K]: keys and values of qkv, ready to travel.
Buffer<float> pack_keys_values(const AttentionGeometry& geometry, Backend backend,
                               View<const float> qkv);

/// Which tokens the keys of a block are: positions [count], documents [B, count] or null, where
/// kernels read them.
struct KeyTokens {
  std::int64_t count;
  const std::int32_t* positions;
  const std::int32_t* documents;
  PositionRuns runs = {};
};
/// All tokens of rank `source`.
KeyTokens tokens_of(const PassContext& pass, int source, Backend backend);

/// Copies `width` elements of each of `rows` rows.
void copy_columns(Backend backend, std::int64_t rows, std::int64_t width, const float* from,
                  std::int64_t from_row, float* to, std::int64_t to_row);
void fill_zero(Backend backend, View<float> data);
/// delta[b, h, i] = sum over K of dout * o: [B, H, T] of this rank's tokens.
Buffer<float> attention_delta(const AttentionGeometry& geometry, Backend backend,
                              View<const float> dout_NHK, const AttentionSaved& saved,
                              const PassContext& pass);

/// Makes saved.lse and fills it and saved.output_NHK block by block: both hold what their names say
/// once the last block has been attended to.
class BlockForward {
 public:
  /// blocks: how many calls of attend() there will be, at least 1.
  BlockForward(const AttentionGeometry& geometry, Backend backend, View<const float> qkv,
               AttentionSaved& saved, const PassContext& pass, std::int64_t blocks);
  /// The first block writes, the others merge, the last finishes. Fails after it.
  void attend(const KeyBlock& block, const KeyTokens& tokens);
  /// The keys are all of rank `source`.
  void attend(const KeyBlock& block, int source) {
    attend(block, tokens_of(pass_, source, backend_));
  }

 private:
  const AttentionGeometry& geometry_;
  Backend backend_;
  const PassContext& pass_;
  std::int64_t blocks_left_;
  Buffer<float> sum_BHT_;
  AttentionForwardArgs args_;
};

/// Zeroes dqkv and adds the gradients of block after block.
class BlockBackward {
 public:
  /// lse and delta_BHT: [B, H, T] of this rank's tokens, over all keys.
  BlockBackward(const AttentionGeometry& geometry, Backend backend, View<const float> dout_NHK,
                View<const float> qkv, View<const float> lse, Buffer<float> delta_BHT,
                View<float> dqkv, const PassContext& pass);
  /// Adds to dq, and to dkeys and the values' gradients kv_width() behind it, in rows of `row`.
  void attend(const KeyBlock& block, const KeyTokens& tokens, float* dkeys, std::int64_t row);
  /// The keys are all of rank `source`.
  void attend(const KeyBlock& block, int source, float* dkeys, std::int64_t row) {
    attend(block, tokens_of(pass_, source, backend_), dkeys, row);
  }

 private:
  const AttentionGeometry& geometry_;
  Backend backend_;
  const PassContext& pass_;
  Buffer<float> delta_BHT_;
  AttentionBackwardArgs args_;
};

}  // namespace longspan::model
