#include "model/attention_choice.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "model/attention_heads.hpp"
#include "model/flops.hpp"

namespace longspan::model {
namespace {

// A CPU core, shared memory and a 1 GB/s network (section 6); the latency is the nap of the
// communication thread (parallel/mpi_group.cpp).
constexpr double kFlopsPerSecond = 30e9, kNodeBytes = 4e9, kNetworkBytes = 1e9, kLatency = 50e-6;

/// Of the rank that sends the most.
AttentionTraffic largest(AttentionSchemeKind scheme, const AttentionGeometry& geometry,
                         const SequenceSharing& sharing) {
  AttentionTraffic most;
  for (int r = 0; r < sharing.ranks; ++r) {
    const AttentionTraffic traffic = attention_traffic(scheme, geometry, sharing, r);
    if (traffic.total() > most.total()) most = traffic;
  }
  return most;
}

double beyond(double wire, double hidden) {
  return std::max(0.0, wire - hidden);
}

/// The ring hides a hop behind a step of compute, but for the last one of the gradients.
double ring_exposed(const AttentionTraffic& traffic, const AttentionMask& mask, int ranks,
                    double forward, double backward, double bandwidth) {
  const double hops = ranks - 1;
  const auto seconds = [&](std::int64_t bytes) { return static_cast<double>(bytes) / bandwidth; };
  const std::int64_t gradients = traffic.backward - traffic.forward;
  if (mask.window > 0)
    return beyond(seconds(traffic.forward) + kLatency, forward) +
           beyond(seconds(traffic.forward) + kLatency, backward) + seconds(gradients) + kLatency;
  const std::int64_t last = gradients / ranks;
  const double share = hops / ranks;  // of the compute: what runs while a hop is under way
  return beyond(seconds(traffic.forward) + hops * kLatency, share * forward) +
         beyond(seconds(traffic.backward - last) + 2 * hops * kLatency, share * backward) +
         seconds(last) + kLatency;
}

}  // namespace

AttentionSeconds attention_seconds(AttentionSchemeKind scheme, const AttentionGeometry& geometry,
                                   const SequenceSharing& sharing, int ranks_per_node) {
  const int ranks = sharing.ranks;
  const AttentionConfig config{geometry.mask.causal ? MaskKind::kCausal : MaskKind::kFull,
                               geometry.mask.window, scheme};
  // Forward 4 per pair and channel, backward 10 (section 5).
  const double work = attention_pairs(config, sharing.length) *
                      static_cast<double>(sharing.sequences * geometry.query_width()) / ranks;
  const double forward = 4 * work / kFlopsPerSecond, backward = 10 * work / kFlopsPerSecond;
  AttentionSeconds result{forward + backward, 0};
  if (ranks == 1) return result;
  const double bandwidth = ranks > ranks_per_node ? kNetworkBytes : kNodeBytes;
  const AttentionTraffic traffic = largest(scheme, geometry, sharing);
  const auto seconds = [&](std::int64_t bytes) { return static_cast<double>(bytes) / bandwidth; };
  switch (scheme) {
    case AttentionSchemeKind::kAllgather: {
      // Hidden behind the rank's own block; the sum of the gradients is not.
      const double wire = seconds(traffic.forward) + kLatency;
      result.exposed = beyond(wire, forward / ranks) + beyond(wire, backward / ranks) + wire;
      break;
    }
    case AttentionSchemeKind::kUlysses: {
      std::int64_t most = 0;
      for (int r = 0; r < ranks; ++r) most = std::max(most, head_share(geometry, r, ranks).count);
      const double uneven =
          static_cast<double>(most * ranks) / static_cast<double>(geometry.heads) - 1;
      // Two exchanges forward, three backward.
      result.exposed = seconds(traffic.total()) + 5 * kLatency + uneven * result.compute;
      break;
    }
    case AttentionSchemeKind::kHybrid: {
      // Of the two parts of the traffic, that of the heads is Ulysses' with `inner` ranks.
      SequenceSharing inner = sharing;
      inner.ranks = sharing.inner;
      inner.length = sharing.tokens(geometry.mask) * sharing.inner;
      const AttentionTraffic heads = largest(AttentionSchemeKind::kUlysses, geometry, inner);
      const AttentionTraffic ring{traffic.forward - heads.forward,
                                  traffic.backward - heads.backward, 0};
      result.exposed =
          static_cast<double>(heads.total()) / kNodeBytes + 5 * kLatency +
          ring_exposed(ring, geometry.mask, ranks / sharing.inner, forward, backward, bandwidth);
      break;
    }
    case AttentionSchemeKind::kAuto:
    case AttentionSchemeKind::kRing:
      result.exposed = ring_exposed(traffic, geometry.mask, ranks, forward, backward, bandwidth);
      break;
  }
  return result;
}

int hybrid_inner(const AttentionGeometry& geometry, int ranks, int ranks_per_node) {
  for (int inner = ranks - 1; inner > 1; --inner)
    // Nodes hold consecutive ranks: groups whose size divides a node's never straddle two.
    if (ranks % inner == 0 && ranks_per_node % inner == 0 && even_heads(geometry, inner))
      return inner;
  return 1;
}

SchemeChoice choose_scheme(AttentionSchemeKind wanted, const AttentionGeometry& geometry,
                           const SequenceSharing& sharing, int ranks_per_node) {
  const int ranks = sharing.ranks;
  const int inner = hybrid_inner(geometry, ranks, ranks_per_node);
  if (wanted == AttentionSchemeKind::kHybrid) {
    if (inner > 1)
      return {wanted, inner,
              fmt::format("hybrid: {} x {} ranks, heads shared by {} neighbours, keys and values "
                          "round {}",
                          inner, ranks / inner, inner, ranks / inner)};
    if (ranks == 1) return {AttentionSchemeKind::kRing, 1, ""};
    const bool heads = ranks <= ranks_per_node && even_heads(geometry, ranks);
    return {heads ? AttentionSchemeKind::kUlysses : AttentionSchemeKind::kRing, 1,
            fmt::format("{}, because attention.scheme=hybrid finds no divisor of {} ranks between "
                        "the two that {} heads, {} key/value heads and {} ranks a node allow",
                        heads ? "ulysses" : "ring", ranks, geometry.heads, geometry.kv_heads,
                        ranks_per_node)};
  }
  if (wanted != AttentionSchemeKind::kAuto || ranks == 1)
    return {wanted == AttentionSchemeKind::kAuto ? AttentionSchemeKind::kRing : wanted, 1, ""};

  SequenceSharing grid = sharing;
  grid.inner = inner;
  const AttentionSeconds ring =
      attention_seconds(AttentionSchemeKind::kRing, geometry, grid, ranks_per_node);
  SchemeChoice best;
  double least = ring.exposed - 0.01 * ring.compute, exposed = ring.exposed;
  std::string others;
  const auto percent = [&](double seconds) { return 100 * seconds / ring.compute; };
  for (const AttentionSchemeKind scheme :
       {AttentionSchemeKind::kAllgather, AttentionSchemeKind::kUlysses,
        AttentionSchemeKind::kHybrid}) {
    if (scheme == AttentionSchemeKind::kHybrid && inner == 1) continue;
    const double seconds = attention_seconds(scheme, geometry, grid, ranks_per_node).exposed;
    others += fmt::format(", {} {:.1f} %", name_of(scheme), percent(seconds));
    if (!(seconds < least)) continue;
    best.scheme = scheme, best.inner = scheme == AttentionSchemeKind::kHybrid ? inner : 1;
    least = exposed = seconds;
  }
  best.why = fmt::format(
      "{}, because by formula it exposes communication of {:.1f} % of the attention time at {:.3g} "
      "MiB sent a layer (ring {:.1f} %{})",
      best.scheme == AttentionSchemeKind::kHybrid
          ? fmt::format("hybrid of {} x {} ranks", inner, ranks / inner)
          : std::string(name_of(best.scheme)),
      percent(exposed), static_cast<double>(largest(best.scheme, geometry, grid).total()) / 1048576,
      percent(ring.exposed), others);
  return best;
}

}  // namespace longspan::model
