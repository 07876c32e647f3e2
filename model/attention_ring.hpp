/// The ring over any group of ranks, each of which has the same number of tokens: what the schemes
/// ring (over the context group) and hybrid (over one rank of every group) do. Stateless;
/// collective over pass.shards.group. Read next: attention_ring.cpp, attention_window.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "model/attention_blocks.hpp"

namespace longspan::model {

/// Makes saved.lse and fills it and saved.output_NHK. With a window only the rows within it travel.
void ring_forward(const AttentionGeometry& geometry, Backend backend, View<const float> qkv,
                  AttentionSaved& saved, const PassContext& pass);
/// dqkv is written with `=`. lse and delta_BHT: [B, H, T] of this rank's tokens, over all keys.
void ring_backward(const AttentionGeometry& geometry, Backend backend, View<const float> dout_NHK,
                   View<const float> qkv, View<const float> lse, Buffer<float> delta_BHT,
                   View<float> dqkv, const PassContext& pass);

/// The same for geometry.mask.window > 0 (attention_window.cpp): every rank sends the rows that
/// another one sees straight to it, and nothing to ranks beyond the window.
void window_ring_forward(const AttentionGeometry& geometry, Backend backend, View<const float> qkv,
                         AttentionSaved& saved, const PassContext& pass);
void window_ring_backward(const AttentionGeometry& geometry, Backend backend,
                          View<const float> dout_NHK, View<const float> qkv, View<const float> lse,
                          Buffer<float> delta_BHT, View<float> dqkv, const PassContext& pass);

/// Consecutive tokens of a rank.
struct RowRange {
  std::int64_t first, count;
  bool operator==(const RowRange&) const = default;
};
/// The keys that at least one of the queries sees under a mask with a window, as ranges in rising
/// order that do not touch. Padding sees nothing and is seen by nothing; documents are not looked
/// at. Pure.
std::vector<RowRange> keys_in_window(const AttentionMask& mask,
                                     const std::vector<std::int32_t>& query_positions,
                                     const std::vector<std::int32_t>& key_positions);

}  // namespace longspan::model
