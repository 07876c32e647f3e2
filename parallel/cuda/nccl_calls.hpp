/// The calls of one NCCL group on their way, and the thread that watches them: it enters them into
/// the flight recorder while the device works on them, asks NCCL whether it is well, and gives up
/// when nothing moves for too long or another rank has given up. Inside of nccl_group.cpp only.
///
/// A failure takes this way: the watcher tells the others over MPI (peer_notes.hpp), aborts the
/// communicator, which lets the streams go on, waits a moment for the accounts of the others, who
/// do the same, and keeps the text. From then on everything that is called on the group throws it.
/// The abort lets the streams go on with data that never arrived: therefore the caller of wait()
/// waits itself, and throws before it can use them.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "parallel/communicator.hpp"
#include "parallel/cuda/nccl_communicator.hpp"
#include "parallel/cuda/nccl_group.hpp"
#include "parallel/cuda/peer_notes.hpp"
#include "parallel/cuda/stream.hpp"

namespace longspan::cuda {

/// A stream whose kernels go before those of others.
class UrgentStream {
 public:
  UrgentStream();
  ~UrgentStream() { (void)cudaStreamDestroy(stream_); }
  UrgentStream(const UrgentStream&) = delete;
  UrgentStream& operator=(const UrgentStream&) = delete;
  cudaStream_t native() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class NcclCalls {
 public:
  struct Call : std::enable_shared_from_this<Call> {
    flight::Operation operation = {};
    std::int64_t bytes = 0;     ///< of this rank's contribution
    std::int64_t sequence = 0;  ///< in the group, from 1
    Event ready;                ///< the compute stream has come so far that it can begin
    Event done{true};
    std::optional<Event> waited;  ///< the compute stream has come so far that it needs the result
    bool submitted = false, announced = false;
    std::optional<std::uint64_t> ticket;  ///< in the flight recorder
    flight::Clock::time_point begin = {};
  };
  using CallPtr = std::shared_ptr<Call>;
  using Work = std::function<NcclResult(NcclComm, cudaStream_t)>;

  /// Connects the ranks. Collective over `comm`.
  NcclCalls(const NcclApi& api, const Communicator& comm, int device, cudaStream_t compute,
            const NcclOptions& options);
  /// Waits for what is on its way, unless an exception travels. Collective then.
  ~NcclCalls();

  int rank() const { return comm_.rank(); }
  int size() const { return comm_.size(); }
  double exposed_seconds() const;

  /// Hands `work` to NCCL, inside of one group, behind what the compute stream has been given.
  CallPtr start(flight::Operation operation, std::int64_t floats, const Work& work);
  /// Returns when the call is over; the compute stream goes on behind it. Throws if the group has
  /// failed.
  void wait(Call& call);
  /// The same without the error: somebody has dropped the call.
  void leave(Call& call) noexcept;

 private:
  struct Problem {
    std::int64_t code = 0;  ///< NcclResult, or one of nccl_calls.cpp's
    CallPtr call;
  };
  void connect();
  void watch();
  void look(const CallPtr& head);
  void finish_head();
  void give_up(const Problem& problem, const std::optional<PeerNote>& told);
  [[noreturn]] void throw_failure();
  std::string describe(std::int64_t code, double seconds);
  std::string group_text() const;
  void collect_exposed() const;

  const Communicator comm_;
  const NcclOptions options_;
  const int device_;
  const cudaStream_t compute_;
  std::vector<int> world_ranks_;  ///< of the members
  NcclCommunicator nccl_;
  PeerNotes notes_;
  UrgentStream stream_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<CallPtr> open_;
  std::optional<Problem> handed_over_;  ///< by the caller's thread to the watcher
  std::string failure_;                 ///< empty: all is well
  bool stop_ = false, connected_ = false, giving_up_ = false;
  std::int64_t submitted_ = 0, finished_ = 0;
  mutable std::vector<CallPtr> waited_;  ///< whose wait is not measured yet
  mutable double exposed_seconds_ = 0;
  std::thread thread_;
};

}  // namespace longspan::cuda
