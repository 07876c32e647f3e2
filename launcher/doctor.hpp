/// `longspan doctor`: what this machine and this allocation offer, and what is wrong with it. Each
/// check returns findings; the judgements are functions of what was measured, so that a test can
/// show them every illness. Read next: doctor_checks.cpp, which measures.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "io/file_system_probe.hpp"
#include "parallel/communicator.hpp"
#include "parallel/link_probe.hpp"

namespace longspan::launcher {

enum class Health { kGood, kInfo, kWarning, kBad };  ///< green, plain, yellow, red

struct Finding {
  std::string topic, subject;
  Health health = Health::kInfo;
  std::string found;
  std::string remedy = {};  ///< for warnings and bad ones: what to do
};
using Findings = std::vector<Finding>;

/// A finding and the nodes it is about; no nodes = all alike.
struct PlacedFinding {
  Finding finding;
  std::vector<std::string> nodes;
};

// --- checks; those that communicate say so ---

/// Versions of what this process is built from and runs with, and the instruction set it uses.
Findings check_software();
/// Cores, memory, limits, /dev/shm of this node. `ranks_here`: ranks on it.
Findings check_node(int ranks_here);
/// Driver, GPUs and NCCL, opened at run time; none is no illness.
Findings check_gpu();
/// Slurm's commands, this allocation, and whether the ranks are one world. `ranks`: of MPI.
Findings check_slurm(int ranks);
/// The file system under `folder`, and whether all nodes see the same files and locks there.
/// Collective.
Findings check_run_directory(const std::string& folder, const Communicator& world);
/// Links, clocks and matrix products of every rank. Collective.
Findings check_ranks(const Communicator& world, const std::vector<std::string>& nodes);

// --- judgements; pure ---

/// A rank below 0.8 x the median is slow, one below 0.5 x is ill: the whole job waits for it.
Findings judge_speeds(const std::vector<double>& flops, const std::vector<std::string>& nodes);
/// Beside links of the same kind (inside a node, between nodes), as above.
Findings judge_links(const std::vector<parallel::LinkSpeed>& links,
                     const std::vector<std::string>& nodes);
/// More than a second apart is a warning: locks, time limits and logs go by the clock. `ahead`:
/// seconds before rank 0's.
Findings judge_clocks(const std::vector<double>& ahead, const std::vector<std::string>& nodes);
/// `nodes`: how many will write there.
Findings judge_file_system(const std::string& folder, const io::FileSystemFacts& facts, int nodes);

struct NodeFacts {
  int machine_cores = 0;  ///< logical processors of the node
  int usable_cores = 0;   ///< in this process's affinity mask
  int sharing_ranks = 1;  ///< ranks of the node with the same mask
  std::int64_t memory_bytes = 0, available_bytes = 0;
  std::int64_t group_limit_bytes = -1;  ///< what this process may use of it; -1 = all
  std::int64_t shm_free_bytes = 0;      ///< of /dev/shm
  std::int64_t file_size_limit = -1, address_limit = -1, locked_limit = -1;  ///< -1 = unlimited
  std::int64_t open_files = 0, processes = -1;
  bool infiniband = false;
  std::string governor;  ///< of processor 0; empty = not told
};
Findings judge_node(const NodeFacts& facts, int ranks_here);

// --- the report ---

/// One entry a node, in rank order. What is found alike everywhere is one row.
std::vector<PlacedFinding> merge_findings(
    const std::vector<std::pair<std::string, Findings>>& by_node);
/// To send them between ranks.
std::string findings_to_json(const Findings& findings);
Findings findings_from_json(const std::string& text);

std::string doctor_text(const std::vector<PlacedFinding>& findings, bool colour);
std::string doctor_json(const std::vector<PlacedFinding>& findings, int ranks,
                        const std::vector<std::string>& nodes);

}  // namespace longspan::launcher
