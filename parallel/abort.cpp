#include "parallel/abort.hpp"

#include <mpi.h>

#include <cstdio>
#include <cstdlib>

#include "parallel/communicator.hpp"

namespace longspan::parallel {

bool has_peers() {
  if (!MpiRuntime::active()) return false;
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size > 1;
}

void abort_job(std::string_view message, ExitStatus status) {
  int rank = 0, length = 0;
  char node[MPI_MAX_PROCESSOR_NAME] = "";
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Get_processor_name(node, &length);
  std::fflush(stdout);
  std::fprintf(stderr, "longspan: rank %d (%s): %.*s\n", rank, node, static_cast<int>(message.size()), message.data());
  std::fflush(stderr);
  MPI_Abort(MPI_COMM_WORLD, static_cast<int>(status));
  std::_Exit(static_cast<int>(status));
}

void leave_together() {
  if (MpiRuntime::active()) MPI_Finalize();
}

}  // namespace longspan::parallel
