/// The way out when one rank fails alone: its peers may sit in a collective that it will never join.
#pragma once

#include <string_view>

namespace longspan::parallel {

/// Whether this process is one of several ranks whose MPI is running.
bool has_peers();
/// Prints "longspan: rank 5 (node02): message" and ends the whole job with `status`. Does not return.
[[noreturn]] void abort_job(std::string_view message, int status);

}  // namespace longspan::parallel
