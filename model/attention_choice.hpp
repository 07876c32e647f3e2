/// Which scheme of sharing a sequence serves a run best, by the formulas of
/// notes/long-sequences.md sections 4 and 6. Pure: the same on every rank. Read next:
/// attention_traffic.hpp.
#pragma once

#include <string>

#include "model/attention_traffic.hpp"

namespace longspan::model {

struct SchemeChoice {
  AttentionSchemeKind scheme = AttentionSchemeKind::kRing;  ///< never auto
  int inner = 1;    ///< hybrid: what split_context() is to make; 1 < inner < ranks
  std::string why;  ///< one sentence for the log if the setting left something open; else empty
};

/// Resolves attention.scheme for sequences shared by sharing.ranks (sharing.inner is ignored), of
/// which `ranks_per_node` consecutive ones share memory.
///
/// auto: the scheme that leaves the least communication exposed, at the speeds of a CPU core in
/// section 6; the ring, which needs the least memory, unless another saves more than 1 % of the
/// attention time. hybrid: inner groups as hybrid_inner() says; where there are none it is Ulysses
/// or the ring. Everything else stays.
SchemeChoice choose_scheme(AttentionSchemeKind wanted, const AttentionGeometry& geometry,
                           const SequenceSharing& sharing, int ranks_per_node);

/// The largest divisor of `ranks`, neither 1 nor `ranks` itself, that even_heads() allows and that
/// stays inside a node; 1 if there is none. Pure.
int hybrid_inner(const AttentionGeometry& geometry, int ranks, int ranks_per_node);

/// What a layer's forward and backward pass of attention take on the slowest rank.
struct AttentionSeconds {
  double compute = 0;  ///< evenly shared work
  double exposed = 0;  ///< communication that nothing hides, and what uneven shares of heads add
};
/// `scheme` is not auto; sharing.inner counts for hybrid. Pure.
AttentionSeconds attention_seconds(AttentionSchemeKind scheme, const AttentionGeometry& geometry,
                                   const SequenceSharing& sharing, int ranks_per_node);

}  // namespace longspan::model
