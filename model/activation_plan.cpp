#include "model/activation_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "model/flops.hpp"
#include "parallel/error.hpp"

namespace longspan::model {
namespace {

/// What is in memory while a layer works, or the loss after the last one: `moved_before` are the
/// bytes of its predecessor that are still on their way out, or on their way back.
std::int64_t bytes_at_work(const ActivationChain& chain, std::size_t layer, std::int64_t kept,
                           std::int64_t moved_before, const LayerOption& option) {
  const bool last = layer + 1 == chain.options_L.size();
  return chain.state_bytes + kept + moved_before + option.moved_bytes +
         std::max(option.work_bytes, last ? chain.loss_bytes : 0);
}

/// A way through the layers so far.
struct Path {
  std::int64_t kept = 0;
  double seconds = 0;
  std::size_t option = 0, parent = 0;  ///< of its last layer; index among the previous layer's
};

/// Drops every path that another with the same last option beats in both bytes and seconds: what
/// follows depends on nothing else.
std::vector<Path> pareto_front(std::vector<Path> paths) {
  std::stable_sort(paths.begin(), paths.end(), [](const Path& a, const Path& b) {
    if (a.option != b.option) return a.option < b.option;
    return a.kept != b.kept ? a.kept < b.kept : a.seconds < b.seconds;
  });
  std::vector<Path> front;
  for (const Path& p : paths)
    if (front.empty() || front.back().option != p.option || p.seconds < front.back().seconds)
      front.push_back(p);
  return front;
}

/// Whether some plan fits: of all ways to a layer's option the one that keeps least is enough.
bool fits(const ActivationChain& chain, std::int64_t budget) {
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  std::vector<std::int64_t> least = {0};
  std::vector<LayerOption> before(1);
  for (std::size_t layer = 0; layer < chain.options_L.size(); ++layer) {
    const auto& options = chain.options_L[layer];
    std::vector<std::int64_t> next(options.size(), kNone);
    for (std::size_t p = 0; p < least.size(); ++p)
      for (std::size_t o = 0; o < options.size() && least[p] != kNone; ++o) {
        const std::int64_t kept = least[p] + options[o].kept_bytes;
        if (bytes_at_work(chain, layer, kept, before[p].moved_bytes, options[o]) <= budget)
          next[o] = std::min(next[o], kept);
      }
    least = std::move(next);
    before = options;
  }
  return std::any_of(least.begin(), least.end(), [](std::int64_t kept) { return kept != kNone; });
}

/// Seconds to bring back what `keep` did not keep of one layer.
double recompute_seconds(const ModelConfig& m, const AttentionConfig& attention, Keep keep,
                         std::int64_t length, const RankShare& share, const NominalRates& rates) {
  if (keep == Keep::kAll) return 0;
  // Tensor ranks share heads and MLP: each does its part for the rows of all.
  const double rows = static_cast<double>(share.own_rows());
  const int context = share.context;
  const std::int64_t query = m.heads * m.head_size, kv = m.kv_heads * m.head_size;
  const std::int64_t hidden = m.mlp == MlpKind::kGelu ? m.mlp_width : 2 * m.mlp_width;
  // The way into attention, the way out of it, the way into the MLP; not the way out, which only
  // makes the next layer's input.
  const double weights = static_cast<double>(m.width * (query + 2 * kv + query + hidden));
  // What was gathered is gathered again, and attention's output summed (tensor_parallel.hpp).
  const double tensor_wire =
      2 * 4 * rows * static_cast<double>((share.tensor - 1) * m.width) / rates.link_bytes;
  const double linear = 2 * weights * rows / rates.linear_flops + tensor_wire;
  // Hybrid exchanges heads among `inner` ranks, and keys and values round the rest.
  const bool hybrid = share.scheme == AttentionSchemeKind::kHybrid;
  const int swapping = hybrid                                          ? share.inner
                       : share.scheme == AttentionSchemeKind::kUlysses ? context
                                                                       : 1;
  const double swapped = static_cast<double>(swapping - 1) / swapping;
  const double hops = static_cast<double>(context / swapping - 1);
  // notes/long-sequences.md section 4: a share of all heads each way, or everybody's keys and
  // values.
  const double qkv_wire =
      4 * rows * static_cast<double>(query + 2 * kv) * swapped / rates.link_bytes;
  if (keep == Keep::kAttention) return linear + qkv_wire;
  const double compute = 4 * attention_pairs(attention, length) *
                         static_cast<double>(share.sequences) * static_cast<double>(query) /
                         (context * share.tensor) / rates.attention_flops;
  const double output_wire = 4 * rows * static_cast<double>(query) * swapped / rates.link_bytes;
  const double kv_wire = 4 * rows * static_cast<double>(2 * kv) * hops / rates.link_bytes;
  // Keys and values travel behind the compute; tokens are exchanged for heads before and after it.
  return linear + qkv_wire + std::max(compute, kv_wire) + output_wire;
}

}  // namespace

ActivationPlan uniform_plan(Keep keep, std::int64_t layers) {
  if (keep == Keep::kAuto) fail("memory.keep=auto has to be worked out before a model is built");
  return {std::vector<Keep>(static_cast<std::size_t>(layers), keep)};
}

std::string to_string(const ActivationPlan& plan) {
  const auto& keep = plan.keep_L;
  std::string text;
  for (std::size_t first = 0, end; first < keep.size(); first = end) {
    for (end = first + 1; end < keep.size() && keep[end] == keep[first];) ++end;
    text += fmt::format("{}{} in layer", text.empty() ? "" : ", ", name_of(keep[first]));
    text += end - first == 1 ? fmt::format(" {}", first) : fmt::format("s {}-{}", first, end - 1);
  }
  return text;
}

std::int64_t peak_bytes(const ActivationChain& chain, const std::vector<std::size_t>& chosen_L) {
  std::int64_t kept = 0, moved_before = 0, peak = 0;
  for (std::size_t layer = 0; layer < chain.options_L.size(); ++layer) {
    const LayerOption& option = chain.options_L[layer][chosen_L[layer]];
    kept += option.kept_bytes;
    peak = std::max(peak, bytes_at_work(chain, layer, kept, moved_before, option));
    moved_before = option.moved_bytes;
  }
  return peak;
}

std::optional<ChosenPlan> cheapest_plan(const ActivationChain& chain, std::int64_t budget_bytes) {
  const std::size_t layers = chain.options_L.size();
  std::vector<std::vector<Path>> paths_L(layers);
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const auto& options = chain.options_L[layer];
    std::vector<Path> extended;
    const auto extend = [&](const Path& path, std::size_t parent, std::int64_t moved_before) {
      for (std::size_t o = 0; o < options.size(); ++o) {
        const std::int64_t kept = path.kept + options[o].kept_bytes;
        if (bytes_at_work(chain, layer, kept, moved_before, options[o]) <= budget_bytes)
          extended.push_back({kept, path.seconds + options[o].extra_seconds, o, parent});
      }
    };
    if (layer == 0) extend({}, 0, 0);
    for (std::size_t p = 0; layer > 0 && p < paths_L[layer - 1].size(); ++p) {
      const Path& path = paths_L[layer - 1][p];
      extend(path, p, chain.options_L[layer - 1][path.option].moved_bytes);
    }
    paths_L[layer] = pareto_front(std::move(extended));
  }
  const auto& ends = paths_L.back();
  if (ends.empty()) return std::nullopt;
  const auto best = std::min_element(ends.begin(), ends.end(), [](const Path& a, const Path& b) {
    return a.seconds != b.seconds ? a.seconds < b.seconds : a.kept < b.kept;
  });
  std::vector<std::size_t> chosen_L(layers);
  ChosenPlan result;
  result.plan.keep_L.resize(layers);
  std::size_t at = static_cast<std::size_t>(best - ends.begin());
  for (std::size_t layer = layers; layer-- > 0;) {
    const Path& path = paths_L[layer][at];
    chosen_L[layer] = path.option;
    result.plan.keep_L[layer] = chain.options_L[layer][path.option].keep;
    at = path.parent;
  }
  result.peak_bytes = peak_bytes(chain, chosen_L);
  result.extra_share = chain.step_seconds > 0 ? best->seconds / chain.step_seconds : 0;
  return result;
}

std::int64_t smallest_budget(const ActivationChain& chain) {
  std::int64_t too_small = -1;
  std::int64_t enough = peak_bytes(chain, std::vector<std::size_t>(chain.options_L.size(), 0));
  while (enough - too_small > 1) {
    const std::int64_t middle = too_small + (enough - too_small) / 2;
    (fits(chain, middle) ? enough : too_small) = middle;
  }
  return enough;
}

ActivationChain activation_chain(const ModelConfig& model, const AttentionConfig& attention,
                                 const MemoryConfig& memory, const std::vector<Keep>& modes,
                                 std::int64_t length, const RankShare& share,
                                 const NominalRates& rates) {
  ActivationChain chain;
  std::vector<LayerOption> options;
  for (const Keep keep : modes) {
    const LayerMemory bytes = layer_memory(model, memory, keep, share);
    const std::int64_t moved = memory.offload != Offload::kNone ? bytes.movable : 0;
    options.push_back({keep, bytes.kept - moved, moved, bytes.at_work,
                       recompute_seconds(model, attention, keep, length, share, rates)});
  }
  const UnitMemory units = unit_memory(model, share);
  std::vector<LayerOption> last = options;
  for (LayerOption& option : options) option.work_bytes += units.block;
  for (LayerOption& option : last) option.work_bytes += units.last_block;
  chain.options_L.assign(static_cast<std::size_t>(model.layers), options);
  chain.options_L.back() = last;
  chain.state_bytes = state_memory(model, share) + table_memory(model, share) + share.staging;
  chain.loss_bytes = loss_memory(model, memory, share) + units.loss;
  const StepFlops flops = model_flops(model, attention, share.sequences, length);
  chain.step_seconds =
      (flops.linear / rates.linear_flops + flops.attention / rates.attention_flops) /
      (share.context * share.tensor);
  return chain;
}

}  // namespace longspan::model
