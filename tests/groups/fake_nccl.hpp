/// NCCL's functions over MPI, for tests without a GPU: the same calls and states as of the real
/// library with non-blocking communicators. What a call does is put on its stream and done there
/// when all ranks have come; sums are taken in rank order. Faults can be asked for.
#pragma once

#include <atomic>

#include "parallel/cuda/nccl_api.hpp"

namespace longspan::groups_test {

struct NcclFaults {
  std::atomic<int> hang_from_call{-1};  ///< from this group of calls on, nothing moves on this rank
  std::atomic<int> error_from_call{-1};   ///< from this one on the state of the communicator is bad
  std::atomic<int> error_code{6};         ///< NcclResult; 6: a remote error
  std::atomic<int> refuse_call{-1};       ///< this one is an invalid argument
  std::atomic<bool> hang_connect{false};  ///< this rank never connects
  std::atomic<bool> fail_connect{false};
  std::atomic<int> polls_in_progress{0};  ///< so often every call is still "in progress"
  // Counted by the fake:
  std::atomic<int> calls{0};  ///< groups of calls since the last reset
  std::atomic<int> aborts{0}, destroys{0};
  std::atomic<int> used_while_in_progress{0};  ///< calls made too early: never allowed
  void reset();
};

NcclFaults& nccl_faults();
const cuda::NcclApi& fake_nccl();

}  // namespace longspan::groups_test
