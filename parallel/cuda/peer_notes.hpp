/// How the ranks of a group tell each other, over MPI, that communication on the device has failed:
/// what hangs or breaks there cannot be asked. Small messages that nobody has to wait for.
#pragma once

#include <mpi.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "parallel/flight_recorder.hpp"

namespace longspan::cuda {

/// A rank's account of itself at the moment of its failure. Calls are numbered from 1.
struct PeerNote {
  int rank = -1;               ///< in the group
  std::int64_t problem = 0;    ///< NcclResult, or one of nccl_group.cpp's
  std::int64_t call = 0;       ///< that failed; 0: none of its own
  std::int64_t submitted = 0;  ///< last call that was handed to the device
  std::int64_t finished = 0;   ///< last call that was over
};

class PeerNotes {
 public:
  /// `comm`: nobody else receives on it.
  explicit PeerNotes(MPI_Comm comm);
  ~PeerNotes();
  PeerNotes(const PeerNotes&) = delete;
  PeerNotes& operator=(const PeerNotes&) = delete;

  /// To every other rank; does not wait. Once.
  void send(const PeerNote& note);
  /// The next one that has arrived.
  std::optional<PeerNote> poll();

 private:
  static constexpr int kTag = 2;
  using Message = std::array<std::int64_t, 4>;
  MPI_Comm comm_;
  int rank_ = 0, size_ = 1;
  Message outgoing_ = {};
  std::vector<MPI_Request> requests_;
};

}  // namespace longspan::cuda
