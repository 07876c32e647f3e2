#include "launcher/step_time.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/attention_heads.hpp"
#include "model/flops.hpp"
#include "parallel/context_parallel.hpp"

namespace longspan::launcher {
namespace {

using model::AttentionSchemeKind;
using model::AttentionTraffic;

constexpr double kFp32 = 4;  // bytes: what travels and what is stored is fp32

double beyond(double wire, double hidden) {
  return std::max(0.0, wire - hidden);
}

double as_double(std::int64_t n) {
  return static_cast<double>(n);
}

/// One pass's compute and communication of one layer's attention for a micro-batch.
struct AttentionPass {
  double compute = 0, exposed = 0;
};

/// Forward: keys and values hop behind the compute of all blocks but the last.
double ring_forward(double bytes, const MachineLink& link, bool windowed, int ranks,
                    double compute) {
  const double wire = bytes / link.bandwidth;
  if (windowed) return beyond(wire + link.latency, compute);
  const double hops = ranks - 1;
  return beyond(wire + hops * link.latency, hops / ranks * compute);
}

/// Backward: gradients follow a hop behind, and nothing hides the last one.
double ring_backward(double forward_bytes, double backward_bytes, const MachineLink& link,
                     bool windowed, int ranks, double compute) {
  const double gradients = backward_bytes - forward_bytes;
  if (windowed)
    return beyond(forward_bytes / link.bandwidth + link.latency, compute) +
           gradients / link.bandwidth + link.latency;
  const double last = gradients / ranks, hops = ranks - 1;
  return beyond((backward_bytes - last) / link.bandwidth + 2 * hops * link.latency,
                hops / ranks * compute) +
         last / link.bandwidth + link.latency;
}

struct AttentionSeconds {
  AttentionPass forward, backward;
  double again = 0;  ///< exposed, if what forward exchanged is gone
};

AttentionSeconds attention_seconds(const RunConfig& c, const MachineDescription& rank,
                                   const Placement& placement, const MeshShape& mesh,
                                   const model::RankShare& share, const ContextTraffic& traffic) {
  const MachineRates& rates = rank.rates(c.model.precision);
  const double pairs = model::attention_pairs(c.attention, c.data.sequence_length) *
                       as_double(share.sequences * c.model.heads * c.model.head_size) /
                       (mesh.context * mesh.tensor) * traffic.busiest;
  AttentionSeconds result;
  double& forward = result.forward.compute = 4 * pairs / rates.attention_forward_flops;
  double& backward = result.backward.compute = 8 * pairs / rates.attention_backward_flops;
  if (mesh.context == 1) return result;

  const MachineLink& link =
      placement.inside(mesh.context, mesh.tensor) ? rank.inside : rank.between;
  const double sequences = as_double(share.sequences);
  const double out = sequences * as_double(traffic.total.forward),
               back = sequences * as_double(traffic.total.backward),
               again = sequences * as_double(traffic.total.again);
  const bool windowed = share.mask.window > 0;
  switch (share.scheme) {
    case AttentionSchemeKind::kAllgather: {
      // Hidden behind the rank's own block; the sum of the gradients is not.
      const double wire = out / link.bandwidth + link.latency;
      result.forward.exposed = beyond(wire, forward / mesh.context);
      result.backward.exposed = beyond(wire, backward / mesh.context) + wire;
      break;
    }
    case AttentionSchemeKind::kUlysses:
      // Two exchanges forward, three backward.
      result.forward.exposed = out / link.bandwidth + 2 * link.latency;
      result.backward.exposed = back / link.bandwidth + 3 * link.latency;
      result.again = again / link.bandwidth + link.latency;
      break;
    case AttentionSchemeKind::kHybrid: {
      const MachineLink& near =
          placement.inside(share.inner, mesh.tensor) ? rank.inside : rank.between;
      const double heads_out = sequences * as_double(traffic.heads.forward),
                   heads_back = sequences * as_double(traffic.heads.backward);
      const int outer = mesh.context / share.inner;
      result.forward.exposed = heads_out / near.bandwidth + 2 * near.latency +
                               ring_forward(out - heads_out, link, windowed, outer, forward);
      result.backward.exposed =
          heads_back / near.bandwidth + 3 * near.latency +
          ring_backward(out - heads_out, back - heads_back, link, windowed, outer, backward);
      result.again = again / near.bandwidth + near.latency;
      break;
    }
    case AttentionSchemeKind::kAuto:
    case AttentionSchemeKind::kRing:
      result.forward.exposed = ring_forward(out, link, windowed, mesh.context, forward);
      result.backward.exposed = ring_backward(out, back, link, windowed, mesh.context, backward);
      break;
  }
  return result;
}

/// Seconds of one layer's products, forward, of a micro-batch; backward is twice that.
struct LayerProducts {
  double qkv = 0, output = 0, up = 0, down = 0;
  double all() const { return qkv + output + up + down; }
  double again() const { return qkv + output + up; }  ///< the way out only makes the next input
};

LayerProducts layer_products(const RunConfig& c, const MachineRates& rates,
                             const model::RankShare& share) {
  const model::ModelConfig part = model::part_of_model(c.model, share.tensor);
  const double rows = as_double(share.rows());
  const std::int64_t query = part.heads * part.head_size,
                     qkv = query + 2 * part.kv_heads * part.head_size,
                     hidden =
                         part.mlp == model::MlpKind::kGelu ? part.mlp_width : 2 * part.mlp_width;
  const auto seconds = [&](std::int64_t in, std::int64_t out) {
    return 2 * rows * as_double(in) * as_double(out) /
           rates.linear_at(as_double(std::min(in, out)));
  };
  return {seconds(part.width, qkv), seconds(query, part.width), seconds(part.width, hidden),
          seconds(part.mlp_width, part.width)};
}

/// Bytes that the operations of one layer touch beside the products: each array once for every
/// operation that reads or writes it (model/kernels/profiled.cpp).
struct PointwiseBytes {
  double forward = 0, backward = 0;
};

PointwiseBytes pointwise_bytes(const RunConfig& c, const model::RankShare& share) {
  const model::ModelConfig part = model::part_of_model(c.model, share.tensor);
  const double own = as_double(share.own_rows()), rows = as_double(share.rows()),
               width = as_double(c.model.width), mlp = as_double(part.mlp_width),
               query = as_double(part.heads * part.head_size),
               keys = as_double(part.kv_heads * part.head_size);
  const bool gelu = part.mlp == model::MlpKind::kGelu;
  const double turned = part.position == model::PositionKind::kRope ? 2 * (query + keys) : 0;
  // Two norms and two residuals; positions; the activation. Backward: norms that accumulate; delta.
  return {kFp32 * (own * 10 * width + rows * (turned + (gelu ? 2 : 3) * mlp)),
          kFp32 * (own * 8 * width + rows * (turned + 2 * query + (gelu ? 3 : 5) * mlp))};
}

/// Bytes one rank sends to sum the gradients, or to gather the weights, of the whole model once.
double gradient_bytes_once(const RunConfig& c, const MeshShape& mesh,
                           const model::RankShare& share) {
  return kFp32 * as_double(model::parameter_count(c.model, mesh.tensor)) * (share.owners - 1) /
         share.owners;
}

/// How often that is sent in a step.
double gradient_passes(const model::RankShare& share, double micro_batches) {
  if (share.owners == 1) return 0;
  switch (share.shard) {
    case model::OptimizerShard::kNone:
    case model::OptimizerShard::kStates:
      return 2;
    case model::OptimizerShard::kGradients:
      return micro_batches + 1;
    case model::OptimizerShard::kParameters:
      return 3 * micro_batches;
  }
  return 0;
}

double micro_batches_of(const RunConfig& c, const MeshShape& mesh) {
  return as_double(c.train.global_batch / (c.train.micro_batch * mesh.data));
}

/// Gathers and sums of a step over the tensor ranks (parallel/tensor_parallel.hpp).
double tensor_calls(const RunConfig& c, const KeepCounts& keeps, double micro_batches) {
  const double again = as_double(keeps.attention + keeps.block);
  return micro_batches * (10 * as_double(c.model.layers) + 2 * again + 2 + 2);
}

/// Seconds nothing hides, for gradients and weights, in a step.
double gradient_exposed(const RunConfig& c, const MachineDescription& rank,
                        const Placement& placement, const MeshShape& mesh,
                        const model::RankShare& share, double forward, double backward,
                        double times) {
  const int owners = share.owners;
  if (owners == 1) return 0;
  const MachineLink& link = placement.inside(placement.ranks, 1) ? rank.inside : rank.between;
  const double once = gradient_bytes_once(c, mesh, share);
  const double seconds = once / link.bandwidth + (owners - 1) * link.latency;
  // Units: the embedding, the layers, the end. Nothing hides the last reduction of a backward.
  const double tail = 1 / as_double(c.model.layers + 2);
  const auto behind = [&](double wire, double compute) {
    return std::max(wire - compute * (1 - tail), wire * tail);
  };
  switch (share.shard) {
    case model::OptimizerShard::kNone:
      return behind(2 * seconds, backward);
    case model::OptimizerShard::kStates:
      // Updated weights are gathered behind the next forward.
      return behind(seconds, backward) + beyond(seconds, forward);
    case model::OptimizerShard::kGradients:
      return times * behind(seconds, backward) + beyond(seconds, forward);
    case model::OptimizerShard::kParameters:
      // Gathered for forward and for backward, a unit ahead.
      return times * (behind(2 * seconds, backward) + behind(seconds, forward));
  }
  return 0;
}

}  // namespace

KeepCounts count_keeps(const model::ActivationPlan& plan) {
  KeepCounts counts;
  for (const model::Keep keep : plan.keep_L)
    ++(keep == model::Keep::kAll         ? counts.all
       : keep == model::Keep::kAttention ? counts.attention
                                         : counts.block);
  return counts;
}

bool Placement::inside(int size, int stride) const {
  const int span = size * stride;
  return ranks <= ranks_per_node || (span <= ranks_per_node && ranks_per_node % span == 0);
}

int Placement::context_per_node(const MeshShape& mesh) const {
  if (ranks <= ranks_per_node) return mesh.context;
  return ranks_per_node % mesh.tensor == 0 ? std::gcd(mesh.context, ranks_per_node / mesh.tensor)
                                           : 1;
}

ContextTraffic context_traffic(const RunConfig& c, const MeshShape& mesh,
                               AttentionSchemeKind scheme, int inner) {
  ContextTraffic result;
  if (mesh.context == 1) return result;
  const model::AttentionGeometry geometry = geometry_of(c, mesh.tensor);
  const int ranks = mesh.context;
  // Padding to a multiple of the tensor ranks travels as well.
  const std::int64_t length =
      mesh.tensor == 1 ? c.data.sequence_length : tokens_of_rank(c, mesh) * ranks;
  const auto most = [&](AttentionSchemeKind kind, const model::SequenceSharing& sharing) {
    AttentionTraffic largest;
    // All ranks alike; but for the ends of a window's chain, and uneven shares of heads.
    const bool alike = sharing.ranks > 512 ||
                       (geometry.mask.window == 0 && kind != AttentionSchemeKind::kUlysses &&
                        kind != AttentionSchemeKind::kHybrid);
    for (int r = alike ? sharing.ranks / 2 : 0; r < (alike ? sharing.ranks / 2 + 1 : sharing.ranks);
         ++r) {
      const AttentionTraffic one = attention_traffic(kind, geometry, sharing, r);
      if (one.total() > largest.total()) largest = one;
    }
    return largest;
  };
  result.total = most(scheme, {1, length, ranks, inner});
  if (scheme == AttentionSchemeKind::kHybrid)
    result.heads =
        most(AttentionSchemeKind::kUlysses, {1, tokens_of_rank(c, mesh) * inner, inner, 1});
  if (scheme == AttentionSchemeKind::kUlysses)
    result.busiest =
        as_double((geometry.heads + ranks - 1) / ranks * ranks) / as_double(geometry.heads);
  return result;
}

StepBytes step_bytes(const RunConfig& c, const MeshShape& mesh, const model::RankShare& share,
                     const KeepCounts& keeps, const ContextTraffic& traffic) {
  const double times = micro_batches_of(c, mesh);
  StepBytes bytes;
  // Attention over the sequence. With keep = attention or block what was exchanged is gone.
  bytes.context = times * as_double(share.sequences) *
                  (as_double(c.model.layers) * as_double(traffic.total.total()) +
                   as_double(keeps.attention) * as_double(traffic.total.again) +
                   as_double(keeps.block) * as_double(traffic.total.forward));
  if (mesh.tensor > 1) {
    const double t = mesh.tensor, rows = as_double(share.rows()),
                 unit = (t - 1) / t * rows * as_double(c.model.width) * kFp32;
    bytes.tensor = tensor_calls(c, keeps, times) * unit + times * 12 * (t - 1) * rows;
  }
  bytes.gradients = gradient_passes(share, times) * gradient_bytes_once(c, mesh, share);
  return bytes;
}

StepEstimate estimate_step(const RunConfig& c, const MachineDescription& rank,
                           const Placement& placement, const MeshShape& mesh,
                           const model::RankShare& share, const KeepCounts& keeps,
                           const ContextTraffic& traffic) {
  const MachineRates& rates = rank.rates(c.model.precision);
  const double times = micro_batches_of(c, mesh), layers = as_double(c.model.layers),
               again = as_double(keeps.attention + keeps.block), block = as_double(keeps.block);
  const double rows = as_double(share.rows()), own = as_double(share.own_rows()),
               width = as_double(c.model.width);
  const auto touch = [&](double bytes) { return bytes / rank.pointwise_bandwidth; };

  const LayerProducts products = layer_products(c, rates, share);
  const PointwiseBytes pointwise = pointwise_bytes(c, share);
  const AttentionSeconds attention = attention_seconds(c, rank, placement, mesh, share, traffic);

  StepEstimate step;
  step.bytes = step_bytes(c, mesh, share, keeps, traffic);
  StepSeconds& s = step.seconds;
  s.linear = times * layers * 3 * products.all();
  s.attention = times * layers * (attention.forward.compute + attention.backward.compute);
  s.pointwise = times * (layers * touch(pointwise.forward + pointwise.backward) +
                         touch(kFp32 * own * 5 * width));
  s.recompute = times * (again * (products.again() + touch(pointwise.forward)) +
                         block * attention.forward.compute);

  const std::int64_t vocabulary = c.model.vocabulary / mesh.tensor;
  s.loss = times * (6 * rows * width * as_double(vocabulary) /
                        rates.linear_at(as_double(std::min(vocabulary, c.model.width))) +
                    touch(3 * kFp32 * rows * as_double(vocabulary)));

  s.context_exposed =
      times * (layers * (attention.forward.exposed + attention.backward.exposed) +
               as_double(keeps.attention) * attention.again + block * attention.forward.exposed);

  if (mesh.tensor > 1) {
    const MachineLink& link = placement.inside(mesh.tensor, 1) ? rank.inside : rank.between;
    s.tensor_exposed = step.bytes.tensor / link.bandwidth +
                       tensor_calls(c, keeps, times) * (mesh.tensor - 1) * link.latency;
  }

  // What one micro-batch's passes take, behind which gradients and weights travel.
  const double layer_forward = products.all() + attention.forward.compute +
                               attention.forward.exposed + touch(pointwise.forward);
  const double forward = layers * layer_forward;
  const double backward = layers * (2 * products.all() + attention.backward.compute +
                                    attention.backward.exposed + touch(pointwise.backward)) +
                          (s.recompute + s.loss) / times;
  s.gradient_exposed = gradient_exposed(c, rank, placement, mesh, share, forward, backward, times);

  // AdamW reads weight, gradient and two moments and writes three of them; the norm reads the
  // gradient, and the next step begins by clearing it.
  const double parameters = as_double(model::parameter_count(c.model, mesh.tensor));
  const double updated =
      share.shard == model::OptimizerShard::kNone ? parameters : parameters / share.owners;
  s.optimizer = touch(kFp32 * 9 * updated) +
                (c.model.precision == model::Precision::kBf16 ? touch(6 * parameters) : 0);

  // The small reductions of a step: targets, loss, norm, and what metrics.jsonl reports.
  const MachineLink& widest = placement.inside(placement.ranks, 1) ? rank.inside : rank.between;
  s.coordination =
      placement.ranks == 1 ? 0 : 8 * std::ceil(std::log2(placement.ranks)) * widest.latency;

  // The loader reads ahead by itself.
  const double read = times * kFp32 * rows / rank.read_bandwidth;
  s.data = beyond(read, s.total());
  const double saved = 12 * as_double(model::parameter_count(c.model)) / placement.ranks;
  const double write = saved / rank.write_bandwidth;
  const double every = as_double(c.checkpoint.every > 0 ? c.checkpoint.every : c.train.steps);
  s.checkpoint = overlaps_saves(c) ? (touch(2 * saved) + beyond(write, every * s.total())) / every
                                   : write / every;
  return step;
}

}  // namespace longspan::launcher
