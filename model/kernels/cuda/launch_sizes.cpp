#include "model/kernels/cuda/launch_sizes.hpp"

#include "parallel/cuda/check.hpp"
#include "parallel/error.hpp"

namespace longspan::model::cuda {

unsigned blocks_for(std::int64_t count, std::int64_t each) {
  const std::int64_t blocks = (count + each - 1) / each;
  if (blocks > 0x7FFFFFFF)
    fail("{} elements in blocks of {} are more than one CUDA launch covers: use smaller chunks",
         count, each);
  return static_cast<unsigned>(blocks);
}

std::int64_t largest_shared_memory() {
  static const int bytes = [] {
    int device = 0, found = 0;
    LONGSPAN_CUDA(cudaGetDevice(&device));
    LONGSPAN_CUDA(cudaDeviceGetAttribute(&found, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return found;
  }();
  return bytes;
}

void check_sortable(std::int64_t rows) {
  if (rows > 0x7FFFFFFF)
    fail(
        "the embedding's backward pass takes 2147483647 rows at most, not {}: use smaller "
        "micro-batches",
        rows);
}

}  // namespace longspan::model::cuda
