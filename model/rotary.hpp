/// Rotary positions (Su et al. 2021) applied to the query and key heads of packed qkv rows.
#pragma once

#include "model/layer.hpp"
#include "parallel/host_copy.hpp"

namespace longspan::model {

/// Angles of a list of positions, made once; shared by all layers.
class RotaryTable {
 public:
  /// Padding (negative positions) gets position 0. Computed in double.
  RotaryTable(const std::vector<std::int32_t>& positions, std::int64_t head_size, double theta,
              Backend backend);
  /// Turns the first `heads` heads of every row of qkv (queries, then keys), or turns them back. In
  /// place.
  void apply(View<float> qkv, std::int64_t heads, bool inverse) const;

 private:
  std::int64_t head_size_;
  /// 0, 1, ...: the table holds one row per local token, not per position.
  Uploaded<std::int32_t> rows_;
  Buffer<float> cos_sin_;
  Backend backend_;
};

}  // namespace longspan::model
