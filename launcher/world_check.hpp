/// Whether the ranks are one world that trains one thing. Ranks that the launcher and MPI count
/// differently would each train alone; ranks with another program, configuration or dataset give
/// wrong gradients without a word.
#pragma once

#include <string>
#include <vector>

#include "launcher/run_config.hpp"
#include "parallel/communicator.hpp"
#include "slurm/environment.hpp"

namespace longspan::launcher {

/// Before MPI starts: what the launcher has started. Refuses several ranks that no MPI library can
/// know of (srun without a plugin for it). Throws AgreedError (usage), which the launcher's rank 0
/// prints.
slurm::LaunchedWorld check_world_before_mpi();
/// After: MPI's size against the launcher's. Throws AgreedError (usage) in the same way.
void check_world_size(const slurm::LaunchedWorld& launched, int mpi_size);

/// Why `mpi_size` is not what the launcher has started, and the way out; empty if it is. Pure.
std::string world_problem(const slurm::LaunchedWorld& launched, int mpi_size);

/// What has to be the same on every rank, as names and values.
using RankFacts = std::vector<std::pair<std::string, std::string>>;
/// The effective configuration, the dataset's identity, and the program's.
RankFacts rank_facts(const RunConfig& config, const std::string& dataset_uuid,
                     std::int64_t dataset_tokens);
/// What differs from rank 0: "data.sequence-length=128, rank 0 has 64; ..."; empty if nothing.
std::string differences(const RankFacts& mine, const RankFacts& first);
/// Throws AgreedError (usage) that names the first rank that differs, its node, and what differs.
/// Collective.
void check_same_everywhere(const RankFacts& mine, const Communicator& world);

/// Identifies the program file: the linker's build id; "unknown" without one.
std::string build_id();
std::string node_name();

}  // namespace longspan::launcher
