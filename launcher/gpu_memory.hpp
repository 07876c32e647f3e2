/// The memory of a rank's GPU: how much of it a run may plan with, one reservation of what it will
/// need before anything is trained, and what the driver was asked for besides. Without a GPU all of
/// it does nothing. Read next: memory_plan.hpp, parallel/cuda/arena.hpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "launcher/compute.hpp"
#include "launcher/memory_plan.hpp"
#include "model/rank_share.hpp"

namespace longspan::launcher {

/// The most that the operations of a GPU need beside the arrays while they run, by formula: rounded
/// copies of operands, what attention passes from kernel to kernel, cuBLASLt's workspace.
std::int64_t kernel_memory(const RunConfig& config, const model::RankShare& share);

/// What was found before the reservation. Bytes of this rank.
struct GpuRoom {
  std::int64_t free_bytes = 0;  ///< what the GPU had left, shared out among the ranks on it
  std::int64_t kernels = 0;     ///< kernel_memory()
  int ranks = 1;                ///< on this GPU
};
/// Nothing on the CPU. Collective over `world`: all ranks look before any takes something.
std::optional<GpuRoom> find_gpu_room(const Compute& compute, const RunConfig& config,
                                     const model::RankShare& share, const Communicator& world);

/// memory_limit() for a GPU: memory.budget; when 0, what is left beside the kernels' memory and the
/// gaps between blocks. The least over all ranks. Collective.
MemoryLimit gpu_memory_limit(std::int64_t budget, const GpuRoom& room, const Communicator& world);

/// Takes what this rank will need from the driver at once: `arrays` (model::MemoryEstimate), the
/// kernels' memory, and an eighth for gaps between blocks as far as there is room. Returns the
/// bytes. Throws Error (usage) with the numbers and what would need less if the first two do not
/// fit. Does not communicate.
std::int64_t reserve_gpu_memory(const Compute& compute, const GpuRoom& room, std::int64_t arrays,
                                const RunConfig& config, const model::RankShare& share);

/// How often this process asked the driver for memory: of the GPU, and page-locked of the host.
struct GpuAllocations {
  std::int64_t device = 0, pinned = 0;
};

/// What a run did with the GPU's memory, the worst rank's.
struct GpuMemoryOutcome {
  std::int64_t reserved = 0;         ///< before the first step
  std::int64_t held = 0;             ///< at the end
  std::int64_t used = 0;             ///< of these: the peak with alignment and gaps
  std::int64_t peak = 0;             ///< arrays and the kernels' memory
  std::int64_t kernels = 0;          ///< the latter's peak
  std::int64_t planned_kernels = 0;  ///< what was planned for it
  GpuAllocations before, first_step, later;
};

/// Counts what is asked of the driver before the first step, in it, and in all later ones and
/// between them.
class GpuMemoryWatch {
 public:
  explicit GpuMemoryWatch(const Compute& compute) : compute_(compute) {}
  void begin_step();
  void end_step();
  /// Nothing without a GPU. `reserved`, `room`: of this rank. Collective over `world`.
  std::optional<GpuMemoryOutcome> outcome(std::int64_t reserved, const std::optional<GpuRoom>& room,
                                          const Communicator& world) const;

 private:
  GpuAllocations now() const;
  const Compute& compute_;
  std::int64_t steps_ = 0;
  GpuAllocations begin_, first_end_;
};

/// One line for the log.
std::string gpu_memory_text(const GpuMemoryOutcome& outcome);

}  // namespace longspan::launcher
