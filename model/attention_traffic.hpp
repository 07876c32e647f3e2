/// What every scheme sends, by formula (notes/long-sequences.md section 4): the tests compare it
/// with what was counted, and attention.scheme=auto chooses by it. Read next: attention_scheme.hpp.
#pragma once

#include <cstdint>

#include "model/attention_scheme.hpp"

namespace longspan::model {

/// How sequences are shared, as far as traffic depends on it. The layout is that of layout_for().
struct SequenceSharing {
  std::int64_t sequences = 1;  ///< of a micro-batch
  std::int64_t length = 0;     ///< tokens of a whole sequence
  int ranks = 1;               ///< of the context group
  int inner = 1;               ///< hybrid: ranks that exchange tokens for heads

  /// T, with padding.
  std::int64_t tokens(const AttentionMask& mask) const;
};

/// Bytes one rank sends a layer.
struct AttentionTraffic {
  std::int64_t forward = 0;
  std::int64_t backward = 0;
  std::int64_t again = 0;  ///< what backward adds if AttentionSaved::exchanged is gone
  std::int64_t total() const { return forward + backward; }
};

/// `scheme` is not auto. To the byte, for any shapes. Pure.
AttentionTraffic attention_traffic(AttentionSchemeKind scheme, const AttentionGeometry& geometry,
                                   const SequenceSharing& sharing, int rank);

/// Rows that rank `from` sends to rank `to` when `ranks` ranks have `tokens` consecutive ones each
/// of a sequence of `length`: the keys that a query there sees through the window. Pure.
std::int64_t rows_in_window(const AttentionMask& mask, std::int64_t length, std::int64_t tokens,
                            int from, int to);

}  // namespace longspan::model
