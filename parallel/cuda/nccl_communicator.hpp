/// One NCCL communicator, never blocking: every call returns at once, and whether it went through
/// is asked of state(). Safe from several threads; abort() may come from another one than the rest.
#pragma once

#include <mutex>
#include <string>

#include "parallel/cuda/nccl_api.hpp"

namespace longspan::cuda {

class NcclCommunicator {
 public:
  explicit NcclCommunicator(const NcclApi& api) : api_(api) {}
  ~NcclCommunicator() { abort(); }  ///< unless finish() went through
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  /// Begins to connect to the others, who all do the same. It is over when state() says so.
  NcclResult connect(const NcclUniqueId& id, int ranks, int rank);
  /// calls(comm) -> NcclResult inside of one NCCL group. kInProgress: ask state() until it is
  /// something else, before the next submit() and before `stream` gets anything else.
  template <class Calls>
  NcclResult submit(const Calls& calls) {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return NcclResult::kInvalidUsage;
    const NcclResult started = api_.group_start();
    if (started != NcclResult::kSuccess) return started;
    const NcclResult made = calls(comm_);
    const NcclResult ended = api_.group_end();
    return bad(made) ? made : ended;
  }
  /// kSuccess: nothing is in progress, nothing is wrong. After abort() kInvalidUsage.
  NcclResult state();
  /// Ends whatever is on its way on this rank; its stream goes on. The others have to do the same.
  void abort() noexcept;
  /// Takes leave of the others, for at most so long; then as abort(). Collective.
  void finish(double seconds) noexcept;

  /// "unhandled system error (...)", with what NCCL has said last.
  std::string text(NcclResult result);
  static bool bad(NcclResult r) {
    return r != NcclResult::kSuccess && r != NcclResult::kInProgress;
  }

 private:
  const NcclApi& api_;
  std::mutex mutex_;
  NcclComm comm_ = nullptr;
};

}  // namespace longspan::cuda
