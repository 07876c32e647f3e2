/// Sizes of launches, checked on the host. Outside of the kernels' sources because nvcc does not
/// take fmt's formats.
#pragma once

#include <cstdint>

namespace longspan::model::cuda {

/// Blocks of `each` that cover `count`, as CUDA wants it. Throws Error beyond 2^31 - 1.
unsigned blocks_for(std::int64_t count, std::int64_t each);

/// Bytes of shared memory that a block may have at most on this device.
std::int64_t largest_shared_memory();

/// Throws Error if the embedding's backward pass cannot number so many rows.
void check_sortable(std::int64_t rows);

}  // namespace longspan::model::cuda
