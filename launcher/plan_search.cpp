#include "launcher/plan_search.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "model/flops.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

using model::AttentionSchemeKind;
using model::Keep;
using model::OptimizerShard;

std::vector<std::int64_t> divisors(std::int64_t n) {
  std::vector<std::int64_t> all;
  for (std::int64_t d = 1; d * d <= n; ++d) {
    if (n % d != 0) continue;
    all.push_back(d);
    if (d * d != n) all.push_back(n / d);
  }
  std::sort(all.begin(), all.end());
  return all;
}

/// Memory of a rank by what its layers keep, without building a plan for every candidate: layers
/// are alike, so memory_estimate() has a closed form.
class RankMemory {
 public:
  RankMemory(const RunConfig& c, const model::RankShare& share)
      : layers_(c.model.layers),
        units_(model::unit_memory(c.model, share)),
        states_(model::state_memory(c.model, share)),
        staging_(share.staging),
        tables_(model::table_memory(c.model, share)),
        loss_(model::loss_memory(c.model, c.memory, share) + units_.loss),
        ends_(tables_ + 8 * share.own_rows() * c.model.width + units_.ends) {
    constexpr std::array kModes = {Keep::kAll, Keep::kAttention, Keep::kBlock};
    for (std::size_t i = 0; i < kModes.size(); ++i) {
      const model::LayerMemory layer = model::layer_memory(c.model, c.memory, kModes[i], share);
      const bool moves = c.memory.offload != model::Offload::kNone;
      modes_[i] = {moves ? layer.kept - layer.movable : layer.kept, moves ? layer.movable : 0,
                   layer.at_work};
    }
  }

  /// Equal to memory_estimate().total() with this mode in all layers: the peak is at the last layer
  /// or at the one before it, whose work may be larger.
  std::int64_t uniform(std::size_t mode) const {
    const Mode& m = modes_[mode];
    const auto at = [&](std::int64_t layer) {
      const bool last = layer + 1 == layers_;
      const std::int64_t work = m.work + (last ? units_.last_block : units_.block);
      return (layer + 1) * m.kept + (layer > 0 ? 2 : 1) * m.moved +
             (last ? std::max(work, loss_) : work);
    };
    std::int64_t peak = at(layers_ - 1);
    if (layers_ > 1) peak = std::max(peak, at(layers_ - 2));
    return states_ + staging_ + std::max(tables_ + peak, ends_);
  }

  /// At least what any order of such a mix needs: every layer's work is held against all that is
  /// kept.
  std::int64_t mixed(const KeepCounts& n) const {
    const std::array<std::int64_t, 3> counts = {n.all, n.attention, n.block};
    std::int64_t kept = 0, work = 0, moved = 0;
    for (std::size_t i = 0; i < modes_.size(); ++i) {
      if (counts[i] == 0) continue;
      kept += counts[i] * modes_[i].kept;
      work = std::max(work, modes_[i].work);
      moved = std::max(moved, modes_[i].moved);
    }
    const std::int64_t most = std::max(work + std::max(units_.block, units_.last_block), loss_);
    return states_ + staging_ + std::max(tables_ + kept + 2 * moved + most, ends_);
  }

 private:
  struct Mode {
    std::int64_t kept = 0, moved = 0, work = 0;
  };
  std::int64_t layers_;
  model::UnitMemory units_;
  std::int64_t states_, staging_, tables_, loss_, ends_;
  std::array<Mode, 3> modes_;
};

class Search {
 public:
  Search(const RunConfig& config, const MachineDescription& machine, const Placement& placement)
      : config_(config),
        rank_(machine.for_rank(placement.ranks_on_node(), config.run.threads)),
        placement_(placement),
        limit_(planned_limit(config, machine, placement).bytes) {
    result_.smallest.memory_bytes = std::numeric_limits<std::int64_t>::max();
  }

  SearchResult run() {
    const auto parts = divisors(placement_.ranks);
    for (const std::int64_t tensor : parts) {
      const bool shareable = tensor_problems(config_.model, static_cast<int>(tensor)).empty();
      for (const std::int64_t context : divisors(placement_.ranks / tensor)) {
        const MeshShape mesh{static_cast<int>(placement_.ranks / tensor / context),
                             static_cast<int>(context), static_cast<int>(tensor)};
        if (!shareable)
          reject("the model cannot be shared evenly by mesh.tensor ranks");
        else if (context > config_.data.sequence_length)
          reject("more mesh.context ranks than tokens");
        else if (config_.train.global_batch % mesh.data != 0)
          reject("train.global-batch is not a multiple of mesh.data");
        else
          try_mesh(mesh);
      }
    }
    std::stable_sort(result_.fitting.begin(), result_.fitting.end(),
                     [](const Candidate& a, const Candidate& b) {
                       return a.step_seconds != b.step_seconds ? a.step_seconds < b.step_seconds
                                                               : a.memory_bytes < b.memory_bytes;
                     });
    return std::move(result_);
  }

 private:
  void reject(const char* why, std::int64_t count = 1) {
    result_.rejected[why] += count;
    result_.looked_at += count;
  }

  void try_mesh(const MeshShape& mesh) {
    RunConfig c = config_;
    c.mesh = {mesh.data, mesh.context, mesh.tensor, false};
    const model::AttentionGeometry geometry = geometry_of(c, mesh.tensor);
    const int inner =
        model::hybrid_inner(geometry, mesh.context, placement_.context_per_node(mesh));
    for (const AttentionSchemeKind scheme :
         {AttentionSchemeKind::kRing, AttentionSchemeKind::kAllgather,
          AttentionSchemeKind::kUlysses, AttentionSchemeKind::kHybrid}) {
      if (mesh.context == 1 && scheme != AttentionSchemeKind::kRing) continue;  // nothing to share
      if (scheme == AttentionSchemeKind::kHybrid && inner == 1) {
        reject("hybrid has no inner group");
        continue;
      }
      if (scheme == AttentionSchemeKind::kUlysses && mesh.context > geometry.heads) {
        reject("ulysses would leave ranks without a head");
        continue;
      }
      const model::SchemeChoice choice{scheme, scheme == AttentionSchemeKind::kHybrid ? inner : 1,
                                       ""};
      c.attention.scheme = scheme;
      const ContextTraffic traffic = context_traffic(c, mesh, scheme, choice.inner);
      for (const std::int64_t micro : divisors(config_.train.global_batch / mesh.data)) {
        c.train.micro_batch = micro;
        for (const OptimizerShard shard :
             {OptimizerShard::kNone, OptimizerShard::kStates, OptimizerShard::kGradients,
              OptimizerShard::kParameters}) {
          if (mesh.data * mesh.context == 1 && shard != OptimizerShard::kNone) continue;
          c.optimizer.shard = shard;
          try_keeps(c, mesh, choice, traffic);
        }
      }
    }
  }

  void try_keeps(const RunConfig& c, const MeshShape& mesh, const model::SchemeChoice& choice,
                 const ContextTraffic& traffic) {
    const model::RankShare share = rank_share_of(c, mesh, choice);
    const RankMemory memory(c, share);
    const std::int64_t layers = c.model.layers;
    constexpr std::array kModes = {Keep::kAll, Keep::kAttention, Keep::kBlock};
    const std::array<KeepCounts, 3> uniform = {KeepCounts{layers, 0, 0}, KeepCounts{0, layers, 0},
                                               KeepCounts{0, 0, layers}};
    Candidate one{mesh, choice.scheme, c.optimizer.shard, c.train.micro_batch, Keep::kAll, {}, 0,
                  0};
    std::array<double, 3> seconds{};
    std::array<bool, 3> fits{};
    for (std::size_t i = 0; i < kModes.size(); ++i) {
      one.keep = kModes[i], one.keeps = uniform[i];
      one.memory_bytes = memory.uniform(i);
      one.step_seconds = seconds[i] = seconds_of(c, mesh, share, one.keeps, traffic);
      ++result_.looked_at;
      fits[i] = one.memory_bytes <= limit_;
      if (one.memory_bytes < result_.smallest.memory_bytes) result_.smallest = one;
      if (fits[i])
        result_.fitting.push_back(one);
      else
        ++result_.rejected["more memory than a rank may use"];
    }
    if (fits[0] || (!fits[1] && !fits[2])) return;
    // Part of the layers may keep more than fits in all of them: the fewest seconds to compute
    // again.
    KeepCounts best;
    double least = std::numeric_limits<double>::infinity();
    for (std::int64_t all = layers - 1; all >= 0; --all)
      for (std::int64_t attention = layers - all; attention >= 0; --attention) {
        const KeepCounts mix{all, attention, layers - all - attention};
        if (memory.mixed(mix) > limit_) continue;
        const double extra = static_cast<double>(mix.attention) * (seconds[1] - seconds[0]) +
                             static_cast<double>(mix.block) * (seconds[2] - seconds[0]);
        if (extra < least) least = extra, best = mix;
        break;  // fewer that keep attention are more that keep less
      }
    const bool pure = best.all == 0 && (best.attention == 0 || best.block == 0);
    if (std::isinf(least) || pure) return;
    ++result_.looked_at;
    one.keep = Keep::kAuto, one.keeps = best;
    one.memory_bytes = memory.mixed(best);
    one.step_seconds = seconds_of(c, mesh, share, best, traffic);
    result_.fitting.push_back(one);
  }

  double seconds_of(const RunConfig& c, const MeshShape& mesh, const model::RankShare& share,
                    const KeepCounts& keeps, const ContextTraffic& traffic) const {
    return estimate_step(c, rank_, placement_, mesh, share, keeps, traffic).seconds.total();
  }

  RunConfig config_;
  MachineDescription rank_;
  Placement placement_;
  std::int64_t limit_;
  SearchResult result_;
};

}  // namespace

SearchResult search_plans(const RunConfig& config, const MachineDescription& machine,
                          const Placement& placement) {
  if (!machine.rates(config.model.precision).given())
    fail_usage("machine {} ({}) has no rates of model.precision={}", machine.name, machine.path,
               config.model.precision == model::Precision::kBf16 ? "bf16" : "fp32");
  if (config.train.global_batch < 1)
    fail_usage(
        "--search compares ways to make the same step: set train.global-batch (sequences of a "
        "step)");
  RunConfig resolved = config;
  resolve(resolved, resolved.model.vocabulary);
  return Search(resolved, machine, placement).run();
}

}  // namespace longspan::launcher
