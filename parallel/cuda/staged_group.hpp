/// Collectives on device memory by way of the host and MPI: for systems without NCCL, and as a
/// check of NCCL. Every operation travels in chunks of 4 MiB through two page-locked buffers: while
/// MPI exchanges one, the next is copied from the device and the last one back to it. Sums are
/// taken on the host, in rank order: the same bits as make_mpi_group() gives.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "parallel/process_group.hpp"

namespace longspan::cuda {

/// Over a duplicate of `comm`. Views given to the group are memory of `device` (the ordinal). An
/// operation sees what was submitted to `compute` before it was started; what is submitted to
/// `compute` after wait() sees its result. wait() blocks the caller until the result is there.
/// Collective. Throws Error if the page-locked buffers cannot be had.
std::unique_ptr<ProcessGroup> make_staged_group(const Communicator& comm, int device,
                                                cudaStream_t compute);

}  // namespace longspan::cuda
