/// Starting ranks on this machine with mpirun, and staying between them and the user: signals go through, one exit status comes back.
#pragma once

#include <string>
#include <vector>

#include "parallel/error.hpp"

namespace longspan::launcher {

/// The mpirun command that starts `program` with `arguments` on `ranks` ranks of a node with `cores` cores. As root it says so to
/// mpirun; with more ranks than cores waiting ranks yield. Pure.
std::vector<std::string> mpirun_command(int ranks, int cores, bool root, const std::string& program,
                                        const std::vector<std::string>& arguments);

/// Runs `command` and waits. SIGINT, SIGTERM and SIGUSR1 reach the ranks as SIGUSR1, which mpirun passes on (it would end them on the
/// other two); a second SIGINT ends everything. mpirun's own banners on stderr are dropped, what the ranks say is not. Returns the
/// ranks' exit status; 128 + signal if mpirun was killed. Throws Error (usage) if the command cannot be started.
int run_and_watch(const std::vector<std::string>& command);

}  // namespace longspan::launcher
