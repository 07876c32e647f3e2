#include "parallel/error.hpp"

#include <mpi.h>

namespace longspan::parallel {

void check_mpi(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail("{}: {}", what, std::string(text, static_cast<std::size_t>(length)));
}

}  // namespace longspan::parallel
