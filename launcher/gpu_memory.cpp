#include "launcher/gpu_memory.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "model/flops.hpp"
#include "model/kernels/cuda/plugin.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
/// model/kernels/cuda: gemm.cpp, a workspace and the largest operand that is rounded at once;
/// attention.hpp, the copies of a slice of heads.
constexpr std::int64_t kGemmWorkspace = 32 * kMiB, kRoundedOperand = 256 * kMiB,
                       kAttentionSlice = 1024 * kMiB;
/// Tables of masks and sorted tokens, partial sums.
constexpr std::int64_t kSmallTables = 4 * kMiB, kTableBytesOfRow = 64;
/// Of what is planned, for gaps between blocks: one part in so many.
constexpr std::int64_t kGapsPart = 8;

std::string mib(std::int64_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / kMiB);
}

std::string shared_by(int ranks) {
  return ranks == 1 ? "" : fmt::format(" for each of the {} ranks on it", ranks);
}

std::int64_t gemm_memory(const model::ModelConfig& m, const model::RankShare& share) {
  const std::int64_t qkv = (m.heads + 2 * m.kv_heads) * m.head_size;
  const std::int64_t widest =
      std::max({m.width, m.mlp_width * 2, qkv, m.vocabulary}) / share.tensor;
  const std::int64_t inner = std::max({m.width, m.mlp_width, m.heads * m.head_size});
  // The first product of a shape tries algorithms; one that adds to its result writes elsewhere.
  const std::int64_t trial = 4 * m.width * (widest + share.tensor);
  if (m.precision == model::Precision::kFp32) return trial;
  const std::int64_t rounded =
      std::min(kRoundedOperand, 2 * std::max(share.rows(), m.width) * std::max(inner, widest + 8));
  return trial + 2 * rounded;
}

std::int64_t attention_memory(const model::ModelConfig& m, const model::RankShare& share) {
  if (m.precision == model::Precision::kFp32) return 0;
  const std::int64_t kv_heads = std::max<std::int64_t>(1, m.kv_heads / share.tensor),
                     group =
                         std::max<std::int64_t>(1, m.heads / std::max<std::int64_t>(1, m.kv_heads));
  // With heads instead of tokens shared out, and with all keys gathered, a call sees more tokens.
  const std::int64_t queries =
      share.tokens * (share.scheme == model::AttentionSchemeKind::kUlysses  ? share.context
                      : share.scheme == model::AttentionSchemeKind::kHybrid ? share.inner
                                                                            : 1);
  const std::int64_t keys =
      share.scheme == model::AttentionSchemeKind::kRing ? queries : share.tokens * share.context;
  const std::int64_t of_head = share.sequences * m.head_size * 2 * (3 * group * queries + 2 * keys);
  const std::int64_t slice = std::clamp(kAttentionSlice, of_head, of_head * kv_heads);
  // A stand-in for the output, gradients of a block and cuDNN's sums in fp32: each no larger.
  return 4 * slice;
}

}  // namespace

std::int64_t kernel_memory(const RunConfig& config, const model::RankShare& share) {
  const model::ModelConfig& m = config.model;
  // Norms sum their gradients in parts of 32 rows.
  const std::int64_t norms = share.rows() * m.width / 4;
  return kGemmWorkspace + kSmallTables + kTableBytesOfRow * share.rows() * share.context +
         std::max({norms, gemm_memory(m, share), attention_memory(m, share)});
}

std::optional<GpuRoom> find_gpu_room(const Compute& compute, const RunConfig& config,
                                     const model::RankShare& share, const Communicator& world) {
  if (compute.gpu == nullptr) return std::nullopt;
  const std::int64_t free = compute.gpu->free_bytes() / compute.ranks_on_gpu;
  world.barrier();
  return GpuRoom{free, kernel_memory(config, share), compute.ranks_on_gpu};
}

MemoryLimit gpu_memory_limit(std::int64_t budget, const GpuRoom& room, const Communicator& world) {
  if (budget > 0) return {budget, "memory.budget"};
  const std::int64_t mine = room.free_bytes * kGapsPart / (kGapsPart + 1) - room.kernels;
  const std::int64_t least = world.all_reduce_min(std::max<std::int64_t>(1, mine));
  if (least < mine) return {least, "another rank's GPU"};
  return {least, fmt::format("the GPU has {} free{}, less {} for kernels and a ninth for gaps",
                             mib(room.free_bytes), shared_by(room.ranks), mib(room.kernels))};
}

std::int64_t reserve_gpu_memory(const Compute& compute, const GpuRoom& room, std::int64_t arrays,
                                const RunConfig& config, const model::RankShare& share) {
  const std::int64_t needed = arrays + room.kernels;
  if (needed > room.free_bytes) {
    // What else would do is what plan_memory() says of a budget.
    const std::int64_t left = std::max<std::int64_t>(1, room.free_bytes - room.kernels);
    std::string way_out = "use more ranks or shorter sequences";
    RunConfig bounded = config;
    bounded.memory.budget = left;
    try {
      plan_memory(bounded, share, {left, "the GPU"});
    } catch (const Error& error) {
      way_out = error.what();
      way_out = way_out.substr(way_out.find(": ") + 2);
    }
    fail_usage("{} has {} free{}, this run needs {} ({} of arrays and up to {} for kernels): {}",
               compute.name, mib(room.free_bytes), shared_by(room.ranks), mib(needed), mib(arrays),
               mib(room.kernels), way_out);
  }
  // Libraries want a little for themselves later on: not the last bytes for gaps.
  const std::int64_t most = std::max(needed, room.free_bytes - room.free_bytes / 32);
  const std::int64_t planned = std::min(needed + needed / kGapsPart, most);
  if (compute.gpu->reserve(planned)) return planned;
  fail(
      "{} had {} free{}, but the driver did not give {} at once: is another program taking memory "
      "there?",
      compute.name, mib(room.free_bytes), shared_by(room.ranks), mib(planned));
}

GpuAllocations GpuMemoryWatch::now() const {
  if (compute_.gpu == nullptr) return {};
  const model::GpuMemory memory = compute_.gpu->memory();
  return {memory.allocations, memory.pinned_allocations};
}

void GpuMemoryWatch::begin_step() {
  if (steps_ == 0) begin_ = now();
}

void GpuMemoryWatch::end_step() {
  if (++steps_ == 1) first_end_ = now();
}

std::optional<GpuMemoryOutcome> GpuMemoryWatch::outcome(std::int64_t reserved,
                                                        const std::optional<GpuRoom>& room,
                                                        const Communicator& world) const {
  if (compute_.gpu == nullptr) return std::nullopt;
  const auto most = [&](std::int64_t mine) { return world.all_reduce_max(mine); };
  const model::GpuMemory memory = compute_.gpu->memory();
  GpuMemoryOutcome outcome;
  outcome.reserved = most(reserved);
  outcome.held = most(memory.held_bytes);
  outcome.used = most(memory.used_bytes);
  outcome.peak = most(memory.peak_bytes);
  outcome.kernels = most(memory.scratch_peak_bytes);
  outcome.planned_kernels = most(room ? room->kernels : 0);
  const GpuAllocations begin = steps_ > 0 ? begin_ : now(), first = steps_ > 0 ? first_end_ : now(),
                       end = now();
  outcome.before = {most(begin.device), most(begin.pinned)};
  outcome.first_step = {most(first.device - begin.device), most(first.pinned - begin.pinned)};
  outcome.later = {most(end.device - first.device), most(end.pinned - first.pinned)};
  return outcome;
}

std::string gpu_memory_text(const GpuMemoryOutcome& o) {
  return fmt::format(
      "GPU memory per rank: {} reserved, {} used at the peak, {} of it by kernels ({} planned) and "
      "{} in gaps; the driver was asked {} before the first step, {} in it, {} later",
      mib(o.reserved), mib(o.used), mib(o.kernels), mib(o.planned_kernels), mib(o.used - o.peak),
      o.before.device == 1 ? "once" : fmt::format("{} times", o.before.device), o.first_step.device,
      o.later.device);
}

}  // namespace longspan::launcher
