#include "parallel/cuda/nccl_communicator.hpp"

#include <chrono>
#include <thread>
#include <utility>

namespace longspan::cuda {

NcclResult NcclCommunicator::connect(const NcclUniqueId& id, int ranks, int rank) {
  const std::lock_guard lock(mutex_);
  NcclConfig config;
  return api_.comm_init_rank_config(&comm_, ranks, id, rank, &config);
}

NcclResult NcclCommunicator::state() {
  const std::lock_guard lock(mutex_);
  if (comm_ == nullptr) return NcclResult::kInvalidUsage;
  NcclResult state = NcclResult::kSuccess;
  const NcclResult asked = api_.comm_get_async_error(comm_, &state);
  return bad(asked) ? asked : state;
}

void NcclCommunicator::abort() noexcept {
  const std::lock_guard lock(mutex_);
  if (comm_ != nullptr) (void)api_.comm_abort(std::exchange(comm_, nullptr));
}

void NcclCommunicator::finish(double seconds) noexcept {
  const auto begin = std::chrono::steady_clock::now();
  NcclResult left = NcclResult::kInvalidUsage;
  {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return;
    left = api_.comm_finalize(comm_);
  }
  while (!bad(left)) {
    left = state();
    if (left != NcclResult::kInProgress) break;
    if (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() > seconds)
      break;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (left == NcclResult::kSuccess) {
    const std::lock_guard lock(mutex_);
    (void)api_.comm_destroy(std::exchange(comm_, nullptr));
  } else {
    abort();
  }
}

std::string NcclCommunicator::text(NcclResult result) {
  const std::lock_guard lock(mutex_);
  std::string text = api_.get_error_string(result);
  const char* const last = api_.get_last_error(comm_);
  if (last != nullptr && *last != '\0') text += std::string(" (") + last + ")";
  for (char& c : text)
    if (c == '\n') c = ' ';
  return text;
}

}  // namespace longspan::cuda
