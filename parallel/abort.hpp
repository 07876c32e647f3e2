/// How a process that knows an error leaves MPI: together with the others, or taking them along.
#pragma once

#include <string_view>

#include "parallel/error.hpp"

namespace longspan::parallel {

/// Whether this process is one of several ranks whose MPI is running: they may sit in a collective that it will never join.
bool has_peers();

/// Prints "longspan: rank 5 (node02): message" and ends the whole job with `status`. Does not return.
[[noreturn]] void abort_job(std::string_view message, ExitStatus status);

/// MPI_Finalize, if MPI still runs: unwinding with an exception has skipped it. Only when every rank is here. Collective.
void leave_together();

}  // namespace longspan::parallel
