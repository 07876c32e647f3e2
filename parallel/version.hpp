#pragma once

#include <string>

namespace longspan::parallel {

/// "Open MPI 4.1.4". Needs no running MPI.
std::string mpi_version();
/// "MPI_THREAD_MULTIPLE" and so on: what the running MPI gives. Needs a running MPI.
std::string mpi_thread_level();
/// Whether this MPI takes device pointers. Open MPI only says so when it is asked while it runs.
bool mpi_cuda_aware();

}  // namespace longspan::parallel
