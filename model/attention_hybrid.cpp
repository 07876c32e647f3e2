#include <memory>
#include <utility>
#include <vector>

#include "model/attention_heads.hpp"
#include "model/attention_ring.hpp"
#include "parallel/error.hpp"

namespace longspan::model {
namespace {

using PerRank = std::vector<std::vector<std::int32_t>>;

PerRank slice(const PerRank& from, int first, int count) {
  return PerRank(from.begin() + first, from.begin() + first + count);
}

/// The context group as a grid of inner groups, which exchange tokens for heads, and outer ones,
/// round which the keys and values of these heads travel.
struct GridShards {
  explicit GridShards(const SequenceShards& all) {
    if (!all.inner || !all.outer)
      fail("attention.scheme=hybrid needs the inner and outer groups of split_context()");
    inner.group = all.inner.get(), inner.index = all.inner->rank();
    outer.group = all.outer.get(), outer.index = all.outer->rank();
    const int width = all.inner->size();
    inner.positions = slice(all.positions, outer.index * width, width);
    // What an inner group holds together is what one rank of the outer ring holds.
    for (int r = 0; r < all.outer->size(); ++r) {
      auto& positions = outer.positions.emplace_back();
      for (int i = 0; i < width; ++i) {
        const auto& theirs = all.positions[static_cast<std::size_t>(r * width + i)];
        positions.insert(positions.end(), theirs.begin(), theirs.end());
      }
    }
  }

  SequenceShards inner, outer;
  std::shared_ptr<PassCache> of_inner = std::make_shared<PassCache>(),
                             of_outer = std::make_shared<PassCache>();
};

/// The same in a pass.
struct Grid {
  Grid(const GridShards& shards, const PassContext& pass)
      : inner{shards.inner, pass.batch, pass.training, {}, {}, shards.of_inner},
        outer{shards.outer, pass.batch, pass.training, {}, {}, shards.of_outer} {
    if (pass.documents.empty()) return;
    const int width = shards.inner.ranks();
    inner.documents = slice(pass.documents, shards.outer.index * width, width);
    const std::int64_t tokens = pass.tokens();
    for (int r = 0; r < shards.outer.ranks(); ++r) {
      auto& documents = outer.documents.emplace_back();
      for (std::int64_t b = 0; b < pass.batch.sequences; ++b)
        for (int i = 0; i < width; ++i) {
          const auto& theirs = pass.documents[static_cast<std::size_t>(r * width + i)];
          documents.insert(documents.end(), theirs.begin() + b * tokens,
                           theirs.begin() + (b + 1) * tokens);
        }
    }
  }

  PassContext inner, outer;
};

const Grid& grid_of(const PassContext& pass) {
  const auto& shards =
      pass.constant->get<GridShards>(0, [&] { return std::make_unique<GridShards>(pass.shards); });
  return pass.own->get<Grid>(0, [&] { return std::make_unique<Grid>(shards, pass); });
}

class HybridAttention : public AttentionScheme {
 public:
  HybridAttention(const AttentionGeometry& geometry, Backend backend)
      : geometry_(geometry), backend_(backend) {}

  void forward(View<const float> qkv, AttentionSaved& saved,
               const PassContext& pass) const override {
    const Grid& grid = grid_of(pass);
    const HeadExchange heads(geometry_, backend_, grid.inner);
    HeadExchange::Transfer inputs = heads.gather_qkv(qkv);
    for (const PendingPtr& sequence : inputs.pending) sequence->wait();
    inputs.tokens.clear();
    HeadExchange::Transfer outputs = heads.make_return(false);
    AttentionSaved ring;
    ring.output_NHK = std::move(outputs.heads);
    ring_forward(own(heads), backend_, inputs.heads, ring, grid.outer);
    outputs.heads = std::move(ring.output_NHK);
    for (std::int64_t b = 0; b < heads.sequences(); ++b) heads.send_back(outputs, false, b);
    saved.lse = std::move(ring.lse);
    saved.exchanged.emplace(std::move(inputs.heads));
    heads.receive_outputs(outputs, saved.output_NHK);
  }

  void backward(View<const float> dout_NHK, View<const float> qkv, const AttentionSaved& saved,
                View<float> dqkv, const PassContext& pass) const override {
    const Grid& grid = grid_of(pass);
    const HeadExchange heads(geometry_, backend_, grid.inner);
    Buffer<float> delta =
        heads.gather_scalars(attention_delta(geometry_, backend_, dout_NHK, saved, pass));
    HeadExchange::Transfer inputs, douts = heads.gather_queries(dout_NHK);
    if (!saved.exchanged) inputs = heads.gather_qkv(qkv);
    for (const PendingPtr& sequence : douts.pending) sequence->wait();
    for (const PendingPtr& sequence : inputs.pending) sequence->wait();
    douts.tokens.clear(), inputs.tokens.clear();
    HeadExchange::Transfer gradients = heads.make_return(true);
    ring_backward(own(heads), backend_, douts.heads,
                  saved.exchanged ? saved.exchanged->view() : inputs.heads.view(), saved.lse,
                  std::move(delta), gradients.heads, grid.outer);
    for (std::int64_t b = 0; b < heads.sequences(); ++b) heads.send_back(gradients, true, b);
    heads.receive_gradients(gradients, dqkv);
  }

 private:
  /// Of the ring: this rank's heads.
  AttentionGeometry own(const HeadExchange& heads) const {
    AttentionGeometry geometry = geometry_;
    geometry.heads = heads.heads(), geometry.kv_heads = heads.kv_heads();
    return geometry;
  }

  AttentionGeometry geometry_;
  Backend backend_;
};

}  // namespace

bool even_heads(const AttentionGeometry& geometry, int ranks) {
  return geometry.heads % ranks == 0 &&
         (geometry.kv_heads % ranks == 0 || ranks % geometry.kv_heads == 0);
}

std::unique_ptr<AttentionScheme> make_hybrid_attention(const AttentionGeometry& geometry,
                                                       Backend backend) {
  return std::make_unique<HybridAttention>(geometry, backend);
}

}  // namespace longspan::model
