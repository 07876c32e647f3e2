#include "launcher/memory_plan.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "model/flops.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

using model::Keep;

std::string mib(std::int64_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / 1048576);
}

/// A budget that can be typed: whole MiB, rounded up.
std::string budget_text(std::int64_t bytes) {
  return fmt::format("{}M", (bytes + 1048575) / 1048576);
}

model::ActivationChain chain_of(const RunConfig& c, model::Offload offload,
                                const std::vector<Keep>& modes, const model::RankShare& share) {
  model::MemoryConfig memory = c.memory;
  memory.offload = offload;
  return model::activation_chain(c.model, c.attention, memory, modes, c.data.sequence_length,
                                 share);
}

const std::vector<Keep> kModes = {Keep::kAll, Keep::kAttention, Keep::kBlock};

/// What would need less than `least`, the smallest budget of all mixes.
std::string ways_out(const RunConfig& c, const model::RankShare& share, std::int64_t least) {
  std::string text = ": more mesh.context ranks";
  if (c.train.micro_batch > 1)
    text += fmt::format(" or train.micro-batch below {}", c.train.micro_batch);
  text += " need less";
  if (c.memory.offload != model::Offload::kNone) return text;
  const std::string moved =
      budget_text(smallest_budget(chain_of(c, model::Offload::kFile, kModes, share)));
  if (moved != budget_text(least))
    text += fmt::format(", and memory.offload=file would do with {}", moved);
  return text;
}

/// The first number of a file of /sys/fs/cgroup; nothing if it has none ("max").
std::int64_t read_number(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::int64_t value = 0;
  return file >> value ? value : 0;
}

/// The lowest limit from this process's control group up to the root; 0 = none. Version 2 has one
/// tree ("0::/path"), version 1 one for memory ("7:memory:/path").
std::int64_t control_group_limit() {
  std::int64_t least = 0;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const bool unified = line.rfind("0::/", 0) == 0;
    const std::size_t memory = line.find(":memory:/");
    if (!unified && memory == std::string::npos) continue;
    const std::filesystem::path root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    std::filesystem::path group = line.substr(unified ? 4 : memory + 9);
    for (;; group = group.parent_path()) {
      const std::int64_t limit =
          read_number(root / group / (unified ? "memory.max" : "memory.limit_in_bytes"));
      if (limit > 0) least = least == 0 ? limit : std::min(least, limit);
      if (group.empty()) break;
    }
  }
  return least;
}

}  // namespace

MemoryLimit node_memory() {
  const auto physical = static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  const std::int64_t group = control_group_limit();
  if (group > 0 && group < physical) return {group, "the control group's limit"};
  return {physical, "the node's memory"};
}

MemoryLimit memory_limit(std::int64_t budget, const Communicator& world) {
  if (budget > 0) return {budget, "memory.budget"};
  // Besides the arrays that are counted there are libraries, file buffers and freed blocks kept for
  // the next step.
  constexpr double kShare = 0.8;
  const int ranks = world.split_by_node().size();
  const MemoryLimit node = node_memory();
  const auto mine = static_cast<std::int64_t>(kShare * static_cast<double>(node.bytes) / ranks);
  const std::int64_t least = world.all_reduce_min(mine);
  if (least < mine) return {least, "another node's memory per rank"};
  return {least, fmt::format("80 % of {}, {}, for {} rank{}", node.source, mib(node.bytes), ranks,
                             ranks == 1 ? "" : "s")};
}

MemoryPlan plan_memory(const RunConfig& c, const model::RankShare& share,
                       const MemoryLimit& limit) {
  const bool is_auto = c.memory.keep == Keep::kAuto;
  const auto chain =
      chain_of(c, c.memory.offload, is_auto ? kModes : std::vector<Keep>{c.memory.keep}, share);
  if (!is_auto && c.memory.budget == 0)
    return {model::uniform_plan(c.memory.keep, c.model.layers), ""};
  const auto chosen = cheapest_plan(chain, limit.bytes);
  const std::string allowed = c.memory.budget > 0 ? fmt::format("memory.budget={}", c.memory.budget)
                                                  : fmt::format("memory.keep=auto: {} ({})",
                                                                mib(limit.bytes), limit.source);
  if (!chosen) {
    const auto mixed = chain_of(c, c.memory.offload, kModes, share);
    const std::int64_t least = smallest_budget(mixed);
    const std::string smallest =
        fmt::format("no mix of keep modes fits, the smallest memory.budget that would do is {}{}",
                    budget_text(least), ways_out(c, share, least));
    if (is_auto) fail_usage("{}: {}", allowed, smallest);
    fail_usage("{}: this memory.keep needs {}; {}", allowed, budget_text(smallest_budget(chain)),
               least <= limit.bytes ? "memory.keep=auto finds a mix that fits" : smallest);
  }
  if (!is_auto) return {chosen->plan, ""};
  const std::string why =
      chosen->extra_share == 0
          ? "nothing has to be computed again"
          : fmt::format(
                "the cheapest mix that fits, {:.1f} % more compute than keeping all, which "
                "needs {}",
                100 * chosen->extra_share,
                mib(peak_bytes(
                    chain, std::vector<std::size_t>(static_cast<std::size_t>(c.model.layers), 0))));
  return {chosen->plan,
          fmt::format("memory.keep=auto: {}: {} predicted of {} ({}); {}", to_string(chosen->plan),
                      mib(chosen->peak_bytes), mib(limit.bytes), limit.source, why)};
}

}  // namespace longspan::launcher
