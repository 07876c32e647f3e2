#include "launcher/step_time.hpp"

#include <algorithm>
#include <cmath>

#include "model/flops.hpp"

namespace longspan::launcher {
namespace {

using model::AttentionSchemeKind;

constexpr double kFp32 = 4;  // bytes: what travels and what is stored is fp32

double beyond(double wire, double hidden) {
  return std::max(0.0, wire - hidden);
}

double as_double(std::int64_t n) {
  return static_cast<double>(n);
}

/// Forward: keys and values hop behind the compute of all blocks but the last.
double ring_forward(double bytes, const MachineLink& link, bool windowed, int ranks,
                    double compute) {
  const double wire = bytes / link.bandwidth;
  if (windowed) return beyond(wire + link.latency, compute);
  const double hops = ranks - 1;
  return beyond(wire + hops * link.latency, hops / ranks * compute);
}

/// Backward: gradients follow a hop behind, and nothing hides the last one. In the first hop only
/// keys and values travel, in the last only gradients, in the others both.
double ring_backward(double forward_bytes, double backward_bytes, const MachineLink& link,
                     bool windowed, int ranks, double compute) {
  const double gradients = backward_bytes - forward_bytes;
  if (windowed)
    return beyond(forward_bytes / link.bandwidth + link.latency, compute) +
           gradients / link.bandwidth + link.latency;
  if (ranks == 1) return 0;
  const double hop = compute / ranks;
  const double keys = forward_bytes / (ranks - 1) / link.bandwidth + link.latency,
               sums = gradients / ranks / link.bandwidth + link.latency;
  return beyond(keys, hop) + (ranks - 2) * beyond(keys + sums, hop) + beyond(sums, hop) + sums;
}

/// What nothing hides of one layer's communication for a micro-batch.
struct AttentionSeconds {
  double forward_exposed = 0, backward_exposed = 0;
  double again = 0;  ///< exposed, if what forward exchanged is gone
};

AttentionSeconds attention_seconds(const StepPieces& p) {
  AttentionSeconds result;
  const double forward = p.attention_forward;
  const double backward = p.attention_backward;
  if (p.context == 1) return result;
  const MachineLink &link = p.context_link, &near = p.heads_link;
  const double out = p.context_forward, back = p.context_backward, again = p.context_again;
  switch (p.scheme) {
    case AttentionSchemeKind::kAllgather: {
      // Hidden behind the rank's own block; the sum of the gradients is not.
      const double wire = out / link.bandwidth + link.latency;
      result.forward_exposed = beyond(wire, forward / p.context);
      result.backward_exposed = beyond(wire, backward / p.context) + wire;
      break;
    }
    case AttentionSchemeKind::kUlysses:
      // Two exchanges forward, three backward.
      result.forward_exposed = out / link.bandwidth + 2 * link.latency;
      result.backward_exposed = back / link.bandwidth + 3 * link.latency;
      result.again = again / link.bandwidth + link.latency;
      break;
    case AttentionSchemeKind::kHybrid: {
      const double heads_out = p.heads_forward, heads_back = p.heads_backward;
      const int outer = p.context / p.inner;
      result.forward_exposed = heads_out / near.bandwidth + 2 * near.latency +
                               ring_forward(out - heads_out, link, p.windowed, outer, forward);
      result.backward_exposed =
          heads_back / near.bandwidth + 3 * near.latency +
          ring_backward(out - heads_out, back - heads_back, link, p.windowed, outer, backward);
      result.again = again / near.bandwidth + near.latency;
      break;
    }
    case AttentionSchemeKind::kAuto:
    case AttentionSchemeKind::kRing:
      result.forward_exposed = ring_forward(out, link, p.windowed, p.context, forward);
      result.backward_exposed = ring_backward(out, back, link, p.windowed, p.context, backward);
      break;
  }
  return result;
}

/// Bytes a rank sends to sum the gradients, or to gather the weights, of the whole model once.
double gradient_bytes_once(const StepPieces& p) {
  return kFp32 * p.parameters() * (p.owners - 1) / p.owners;
}

/// How often that is sent in a step.
double gradient_passes(const StepPieces& p) {
  switch (p.shard) {
    case model::OptimizerShard::kNone:
    case model::OptimizerShard::kStates:
      return 2;
    case model::OptimizerShard::kGradients:
      return p.accumulation + 1;
    case model::OptimizerShard::kParameters:
      return 3 * p.accumulation;
  }
  return 0;
}

/// Gathers and sums of a step over the tensor ranks (parallel/tensor_parallel.hpp).
double tensor_calls(const StepPieces& p, const KeepCounts& keeps) {
  const double again = as_double(keeps.attention + keeps.block);
  return p.accumulation * (10 * as_double(p.layers) + 2 * again + 2 + 2);
}

/// Seconds nothing hides, for gradients and weights, in a step.
double gradient_exposed(const StepPieces& p, double forward, double backward) {
  if (p.owners == 1) return 0;
  const double seconds =
      gradient_bytes_once(p) / p.gradient_link.bandwidth + (p.owners - 1) * p.gradient_link.latency;
  // Units: the embedding, the layers, the end. Nothing hides the last reduction of a backward.
  const double tail = 1 / as_double(p.layers + 2);
  const auto behind = [&](double wire, double compute) {
    return std::max(wire - compute * (1 - tail), wire * tail);
  };
  const double times = p.accumulation;
  switch (p.shard) {
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

KeepCounts count_keeps(const std::vector<model::Keep>& keep_L) {
  KeepCounts counts;
  for (const model::Keep keep : keep_L)
    ++(keep == model::Keep::kAll         ? counts.all
       : keep == model::Keep::kAttention ? counts.attention
                                         : counts.block);
  return counts;
}

StepBytes step_bytes(const StepPieces& p, const KeepCounts& keeps) {
  const double times = p.accumulation;
  StepBytes bytes;
  // Attention over the sequence. With keep = attention or block what was exchanged is gone.
  bytes.context = times * (as_double(p.layers) * (p.context_forward + p.context_backward) +
                           as_double(keeps.attention) * p.context_again +
                           as_double(keeps.block) * p.context_forward);
  if (p.tensor > 1) bytes.tensor = tensor_calls(p, keeps) * p.tensor_unit + times * p.tensor_loss;
  if (p.owners > 1) bytes.gradients = gradient_passes(p) * gradient_bytes_once(p);
  return bytes;
}

double tensor_array_bytes(const StepBytes& bytes, int tensor) {
  return tensor > 1 ? bytes.tensor * tensor / (tensor - 1) : 0;
}

double context_array_bytes(const StepPieces& p, const StepBytes& bytes) {
  const bool ulysses = p.scheme == AttentionSchemeKind::kUlysses,
             hybrid = p.scheme == AttentionSchemeKind::kHybrid;
  const int ranks = ulysses ? p.context : p.inner;
  if ((!ulysses && !hybrid) || ranks < 2) return bytes.context;
  // Of hybrid's bytes those of the inner groups.
  const double exchanged =
      ulysses ? 1 : (p.heads_forward + p.heads_backward) / (p.context_forward + p.context_backward);
  return bytes.context * (1 + exchanged / (ranks - 1));
}

CopyingSeconds copying_seconds(const StepPieces& p, const StepBytes& bytes) {
  return {context_array_bytes(p, bytes) * p.context_link.core_seconds_per_byte,
          tensor_array_bytes(bytes, p.tensor) * p.tensor_link.tensor_core_seconds_per_byte,
          bytes.gradients * p.gradient_link.core_seconds_per_byte};
}

StepEstimate estimate_step(const RunConfig& c, const MachineDescription& rank,
                           const Placement& placement, const MeshShape& mesh,
                           const model::RankShare& share, const KeepCounts& keeps,
                           const ContextTraffic& traffic) {
  const StepPieces p = step_pieces(c, rank, placement, mesh, share, traffic);
  const double times = p.accumulation, layers = as_double(p.layers),
               again = as_double(keeps.attention + keeps.block), block = as_double(keeps.block);
  const AttentionSeconds attention = attention_seconds(p);

  StepEstimate step;
  step.bytes = step_bytes(p, keeps);
  StepSeconds& s = step.seconds;
  s.linear = times * layers * 3 * p.products.all();
  s.attention = times * layers * (p.attention_forward + p.attention_backward);
  s.pointwise = times * (layers * (p.pointwise_forward + p.pointwise_backward) + p.embedding);
  s.recompute = times * (again * (p.products.again() + p.pointwise_forward) +
                         block * p.attention_forward + as_double(keeps.all) * p.activation);
  s.loss = times * p.loss();

  s.context_exposed =
      times * (layers * (attention.forward_exposed + attention.backward_exposed) +
               as_double(keeps.attention) * attention.again + block * attention.forward_exposed);
  if (p.tensor > 1)
    s.tensor_exposed = step.bytes.tensor / p.tensor_link.bandwidth +
                       tensor_calls(p, keeps) * (p.tensor - 1) * p.tensor_link.latency;

  // What one micro-batch's passes take, behind which gradients and weights travel.
  const double forward = layers * (p.products.all() + p.attention_forward +
                                   attention.forward_exposed + p.pointwise_forward);
  const double backward = layers * (2 * p.products.all() + p.attention_backward +
                                    attention.backward_exposed + p.pointwise_backward) +
                          (s.recompute + s.loss) / times;
  s.gradient_exposed = gradient_exposed(p, forward, backward);
  const CopyingSeconds copying = copying_seconds(p, step.bytes);
  s.context_exposed += copying.context;
  s.tensor_exposed += copying.tensor;
  s.gradient_exposed += copying.gradients;
  s.optimizer = p.optimizer;

  // The small reductions of a step: targets, loss, norm, and what metrics.jsonl reports.
  s.coordination = placement.ranks == 1 ? 0
                                        : kSmallReductions * std::ceil(std::log2(placement.ranks)) *
                                              p.world_link.latency;

  // The loader reads ahead by itself.
  const double read = times * kFp32 * as_double(share.rows()) / rank.read_bandwidth;
  s.data = beyond(read, s.total());
  const SaveSeconds save = save_seconds(c, rank, placement);
  const double every = as_double(c.checkpoint.every > 0 ? c.checkpoint.every : c.train.steps);
  s.checkpoint = (save.blocked + beyond(save.behind, every * s.total())) / every;
  return step;
}

SaveSeconds save_seconds(const RunConfig& c, const MachineDescription& rank,
                         const Placement& placement) {
  const double saved = 12 * as_double(model::parameter_count(c.model)) / placement.ranks;
  const double write = saved / rank.write_bandwidth;
  if (!overlaps_saves(c)) return {write, 0};
  return {2 * saved / rank.pointwise_bandwidth, write};
}

}  // namespace longspan::launcher
