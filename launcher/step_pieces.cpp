#include "launcher/step_pieces.hpp"

#include <algorithm>
#include <numeric>

#include "model/attention_heads.hpp"
#include "model/flops.hpp"
#include "parallel/context_parallel.hpp"

namespace longspan::launcher {
namespace {

using model::AttentionSchemeKind;
using model::AttentionTraffic;

constexpr double kFp32 = 4;  // bytes: what travels and what is stored is fp32

double as_double(std::int64_t n) {
  return static_cast<double>(n);
}

/// Of `flops` per weight. A product is the faster the deeper it is: forward is `in` deep, the
/// input's gradient `out`; the weight's is as deep as there are rows and goes with the mean of
/// both.
double product_seconds(const MachineRates& rates, double flops, std::int64_t in, std::int64_t out) {
  const double all = flops * as_double(in) * as_double(out);
  return all / 2 *
         (1 / rates.linear_flops.at(as_double(in)) + 1 / rates.linear_flops.at(as_double(out)));
}

LayerProducts layer_products(const RunConfig& c, const MachineRates& rates,
                             const model::RankShare& share) {
  const model::ModelConfig part = model::part_of_model(c.model, share.tensor);
  const double rows = as_double(share.rows());
  const std::int64_t query = part.heads * part.head_size,
                     qkv = query + 2 * part.kv_heads * part.head_size,
                     hidden =
                         part.mlp == model::MlpKind::kGelu ? part.mlp_width : 2 * part.mlp_width;
  const auto seconds = [&](std::int64_t in, std::int64_t out) {
    return product_seconds(rates, 2 * rows, in, out);
  };
  return {seconds(part.width, qkv), seconds(query, part.width), seconds(part.width, hidden),
          seconds(part.mlp_width, part.width)};
}

/// Bytes that the operations of one layer touch beside the products: each array once for every
/// operation that reads or writes it (model/kernels/profiled.cpp).
struct PointwiseBytes {
  double forward = 0, backward = 0, activation = 0;
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
  // What keep=all makes again: two norms, the activation.
  return {kFp32 * (own * 10 * width + rows * (turned + (gelu ? 2 : 3) * mlp)),
          kFp32 * (own * 8 * width + rows * (turned + 2 * query + (gelu ? 3 : 5) * mlp)),
          kFp32 * (own * 4 * width + rows * (gelu ? 2 : 3) * mlp)};
}

/// Of attention over whole sequences, or over the blocks of single ranks (allgather as well: its
/// own block hides the gather of the others).
std::int64_t keys_of_a_call(const RunConfig& c, const model::RankShare& share) {
  switch (share.scheme) {
    case AttentionSchemeKind::kUlysses:
      return c.data.sequence_length;
    case AttentionSchemeKind::kHybrid:
      return c.data.sequence_length * share.inner / share.context;
    case AttentionSchemeKind::kAuto:
    case AttentionSchemeKind::kRing:
    case AttentionSchemeKind::kAllgather:
      return c.data.sequence_length / share.context;
  }
  return c.data.sequence_length;
}

}  // namespace

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

StepPieces step_exchanges(const RunConfig& c, const MeshShape& mesh, const model::RankShare& share,
                          const ContextTraffic& traffic) {
  const double rows = as_double(share.rows()), width = as_double(c.model.width),
               sequences = as_double(share.sequences);
  StepPieces p;
  p.accumulation = static_cast<int>(c.train.global_batch / (c.train.micro_batch * mesh.data));
  p.layers = c.model.layers;
  p.context = mesh.context, p.inner = share.inner, p.tensor = mesh.tensor, p.owners = share.owners;
  p.scheme = share.scheme, p.shard = share.shard, p.windowed = share.mask.window > 0;
  if (mesh.context > 1) {
    p.context_forward = sequences * as_double(traffic.total.forward);
    p.context_backward = sequences * as_double(traffic.total.backward);
    p.context_again = sequences * as_double(traffic.total.again);
    p.heads_forward = sequences * as_double(traffic.heads.forward);
    p.heads_backward = sequences * as_double(traffic.heads.backward);
  }
  // parallel/tensor_parallel.hpp: U a gather or a sum.
  const double t = mesh.tensor;
  p.tensor_unit = (t - 1) / t * rows * width * kFp32;
  p.tensor_loss = 12 * (t - 1) * rows;

  model::ModelConfig ends = c.model;
  ends.layers = 0;
  const double both_ends = as_double(model::parameter_count(ends, mesh.tensor));
  const double parameters = as_double(model::parameter_count(c.model, mesh.tensor));
  p.layer_elements = (parameters - both_ends) / as_double(c.model.layers);
  p.embedding_elements = as_double(c.model.vocabulary / mesh.tensor * c.model.width);
  p.end_elements = both_ends - p.embedding_elements;
  return p;
}

StepPieces step_pieces(const RunConfig& c, const MachineDescription& rank,
                       const Placement& placement, const MeshShape& mesh,
                       const model::RankShare& share, const ContextTraffic& traffic) {
  const MachineRates& rates = rank.rates(c.model.precision);
  const auto touch = [&](double bytes) { return bytes / rank.pointwise_bandwidth; };
  const auto link = [&](int size, int stride) {
    return placement.inside(size, stride) ? rank.inside : rank.between;
  };
  const double rows = as_double(share.rows()), own = as_double(share.own_rows()),
               width = as_double(c.model.width);
  StepPieces p = step_exchanges(c, mesh, share, traffic);
  p.context_link = link(mesh.context, mesh.tensor), p.heads_link = link(share.inner, mesh.tensor);
  p.tensor_link = link(mesh.tensor, 1);
  p.gradient_link = p.world_link = link(placement.ranks, 1);

  p.products = layer_products(c, rates, share);
  const PointwiseBytes pointwise = pointwise_bytes(c, share);
  p.pointwise_forward = touch(pointwise.forward);
  p.pointwise_backward = touch(pointwise.backward);
  p.activation = touch(pointwise.activation);
  const double pairs = model::attention_pairs(c.attention, c.data.sequence_length) *
                       as_double(share.sequences * c.model.heads * c.model.head_size) /
                       (mesh.context * mesh.tensor) * traffic.busiest;
  const double keys = as_double(keys_of_a_call(c, share));
  p.attention_forward = 4 * pairs / rates.attention_forward_flops.at(keys);
  p.attention_backward = 8 * pairs / rates.attention_backward_flops.at(keys);
  p.embedding = touch(kFp32 * own * 5 * width);
  const std::int64_t vocabulary = c.model.vocabulary / mesh.tensor;
  p.loss_product = product_seconds(rates, 6 * rows, c.model.width, vocabulary);
  p.loss_pointwise = touch(3 * kFp32 * rows * as_double(vocabulary));

  const double parameters = as_double(model::parameter_count(c.model, mesh.tensor));
  // AdamW reads weight, gradient and two moments and writes three of them; the norm reads the
  // gradient, and the next step begins by clearing it.
  const double updated =
      share.shard == model::OptimizerShard::kNone ? parameters : parameters / share.owners;
  p.optimizer = touch(kFp32 * 9 * updated) +
                (c.model.precision == model::Precision::kBf16 ? touch(6 * parameters) : 0);
  return p;
}

}  // namespace longspan::launcher
