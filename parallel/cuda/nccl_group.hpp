/// Collectives over NCCL, on a stream of the group's own that goes before the compute stream.
///
/// wait() returns when the call is over on the device, and throws if it failed: an aborted call lets
/// the streams go on with data that never arrived, which nothing may use. The error names the call,
/// its bytes, the group and what the other ranks were doing (nccl_calls.hpp says how they agree on
/// it).
///
/// Reproducibility: NCCL does not promise sums in rank order, so results differ in the last bits
/// from those of the MPI group and of other meshes. The same ranks on the same nodes with the same
/// NCCL give the same bits every time if its algorithm and protocol are fixed, which
/// run.deterministic=on does with NCCL_ALGO=Ring and NCCL_PROTO=Simple (fix_nccl_algorithm());
/// otherwise NCCL chooses by size and topology, as a rule the same every time.
/// run.communication=staged gives the bits of the MPI group.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "parallel/cuda/nccl_api.hpp"
#include "parallel/process_group.hpp"

namespace longspan::cuda {

struct NcclOptions {
  /// How long a call that could begin may take; 0 = for ever. More than the watchdog's limit
  /// (watchdog.hpp), which can name the rank that stops the run and should speak first.
  double deadline_seconds = 0;
  double setup_seconds = 300;  ///< for connecting
  double answer_seconds = 2;   ///< for the others' accounts after a failure
};

/// Over a duplicate of `comm`. Views given to the group are memory of `device` (the ordinal), of
/// which every rank has its own unless share_gpu_between_ranks() was called. Operations see what
/// `compute` was given before they were started. Collective. Throws Error on every rank if the
/// ranks cannot be connected.
std::unique_ptr<ProcessGroup> make_nccl_group(const NcclApi& api, const Communicator& comm,
                                              int device, cudaStream_t compute,
                                              const NcclOptions& options);

}  // namespace longspan::cuda
