#pragma once

#include <string>

namespace longspan::parallel {

/// "Open MPI 4.1.4". Needs no running MPI.
std::string mpi_version();

}  // namespace longspan::parallel
