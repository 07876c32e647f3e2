#include "parallel/cuda/check.hpp"

#include <string_view>

namespace longspan::cuda {

void fail_cuda(cudaError_t error, const char* call, const char* file, int line) {
  (void)cudaGetLastError();  // what it says is said here; the next call starts afresh
  std::string_view place = file;
  const std::size_t slash = place.rfind('/');
  if (slash != std::string_view::npos) place.remove_prefix(slash + 1);
  fail("CUDA: {} (error {}) in {} at {}:{}", cudaGetErrorString(error), static_cast<int>(error),
       call, place, line);
}

}  // namespace longspan::cuda
