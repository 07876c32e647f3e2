/// Hosts for `longspan launch --hostfile F`: mpirun's own format, checked before mpirun is started,
/// because what mpirun 4.1 says about a mistake in it does not name the line.
///
///     # comment
///     node01 slots=4            at most so many ranks; without it, as many as the node has cores
///     me@node02 slots=4 max_slots=8
///
/// A host may stand in several lines without slots, once for each rank, or in one line with slots.
#pragma once

#include <string>
#include <vector>

namespace longspan::launcher {

struct Host {
  std::string name;  ///< without "user@"
  int slots = 0;     ///< 0 = the file does not say
};

/// `source` names the file in errors. Throws Error (usage) with every problem, one a line.
std::vector<Host> parse_hostfile(const std::string& text, const std::string& source);
/// Throws Error (usage) also if it cannot be read.
std::vector<Host> read_hostfile(const std::string& path);

/// The sum, or 0 if a host does not say how many it has.
int total_slots(const std::vector<Host>& hosts);
/// Whether all of them are this machine, so that shared memory reaches every rank.
bool all_local(const std::vector<Host>& hosts);

}  // namespace longspan::launcher
