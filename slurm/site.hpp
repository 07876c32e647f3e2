/// What a Slurm cluster can run at all, asked before a job is given to it: a request that no node
/// can ever serve would wait in the queue for ever, or be refused in a few words.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "slurm/config.hpp"

namespace longspan::slurm {

/// Nodes of a partition that are alike.
struct NodeKind {
  std::string partition;
  int cpus = 0, nodes = 0;
};

struct Partition {
  std::string name;
  bool is_default = false;
  bool up = true;                           ///< takes jobs and starts them
  int nodes = 0;                            ///< that it has
  std::optional<int> max_nodes;             ///< of one job
  std::optional<std::int64_t> max_seconds;  ///< of one job
  std::vector<std::string> allowed_accounts, denied_accounts, allowed_qos, denied_qos;
};

struct Site {
  std::vector<Partition> partitions;
  std::vector<NodeKind> node_kinds;
  /// The user's, as far as Slurm keeps accounts; empty = not known.
  std::vector<std::string> accounts, qos;
};

/// Asks scontrol, sinfo and, for an account or a QOS, sacctmgr; each answers within 5 s or counts
/// as silent. Nothing where Slurm does not say what partitions there are.
std::optional<Site> ask_site(const SlurmConfig& request);

struct RequestProblem {
  bool certain = false;  ///< no: an administrator, a QOS or a node to come may make it possible
  std::string text;      ///< one line with the way out
};
/// What of `request` (nodes and ranks per node resolved) `site` cannot serve. `cpus_per_rank`: 0 =
/// what the site gives. Of several partitions one that can serve it is enough. Pure.
std::vector<RequestProblem> request_problems(const SlurmConfig& request, int cpus_per_rank,
                                             const Site& site);

/// The lines of `scontrol -a -o show partition`. Pure.
std::vector<Partition> parse_partitions(const std::string& text);
/// The lines of `sinfo -a -h -e -o '%R|%c|%D'`. Pure.
std::vector<NodeKind> parse_node_kinds(const std::string& text);

}  // namespace longspan::slurm
