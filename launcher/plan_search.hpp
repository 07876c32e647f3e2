/// Every way to run a configuration on N ranks: all meshes that the model allows, schemes,
/// optimizer.shard, micro-batches and keep modes, each with its time and its memory. Nothing is
/// sampled. Pure. Read next: step_time.hpp.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "launcher/plan.hpp"

namespace longspan::launcher {

/// One way that fits. memory.keep may be auto: then `keeps` is a mix that fits for certain, and the
/// plan of the run is at least as good.
struct Candidate {
  MeshShape mesh;
  model::AttentionSchemeKind scheme = model::AttentionSchemeKind::kRing;
  model::OptimizerShard shard = model::OptimizerShard::kNone;
  std::int64_t micro_batch = 1;
  model::Keep keep = model::Keep::kAll;
  KeepCounts keeps;
  std::int64_t memory_bytes = 0;  ///< arrays of a rank
  double step_seconds = 0;
};

struct SearchResult {
  std::vector<Candidate> fitting;  ///< fastest first; ties: less memory, then as enumerated
  std::int64_t looked_at = 0;
  /// Why the others are out, and how many.
  std::map<std::string, std::int64_t> rejected;
  /// The one that needs the least memory of all that were looked at, fitting or not.
  Candidate smallest;
};

/// `config` with its mesh, scheme, shard, micro-batch and keep mode left out of account;
/// model.vocabulary and train.global-batch are set. Throws Error (usage) if train.global-batch is
/// not set, or if the machine has no rates of model.precision. memory.keep=auto is tried where
/// keep=all does not fit.
SearchResult search_plans(const RunConfig& config, const MachineDescription& machine,
                          const Placement& placement);

/// The settings of a candidate, for resolved_for() and for people: "mesh.data" -> "2", ...
std::vector<std::pair<std::string, std::string>> settings_of(const Candidate& candidate);
RunConfig with_candidate(RunConfig config, const Candidate& candidate);

/// The `shown` best, why the others are out, and the best one's settings as INI. Throws Error
/// (usage) if nothing fits: with the smallest budget that would do and its settings.
std::string search_text(const SearchResult& result, const RunConfig& config,
                        const MachineDescription& machine, const Placement& placement,
                        std::size_t shown);
std::string search_json(const SearchResult& result, const RunConfig& config,
                        const MachineDescription& machine, const Placement& placement,
                        std::size_t shown);

}  // namespace longspan::launcher
