#include "parallel/version.hpp"

#include <mpi.h>

namespace longspan::parallel {

std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  // "Open MPI v4.1.4, package: ..." -> "Open MPI 4.1.4"
  std::string version(text, static_cast<std::size_t>(length));
  version = version.substr(0, version.find(','));
  if (const auto v = version.find(" v"); v != std::string::npos) version.erase(v + 1, 1);
  return version;
}

}  // namespace longspan::parallel
