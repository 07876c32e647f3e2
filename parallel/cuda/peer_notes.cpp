#include "parallel/cuda/peer_notes.hpp"

#include "parallel/error.hpp"

namespace longspan::cuda {

using parallel::check_mpi;

PeerNotes::PeerNotes(MPI_Comm comm) : comm_(comm) {
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
}

PeerNotes::~PeerNotes() {
  // Who has sent one is about to end the job. Small messages have left long ago.
  for (MPI_Request& request : requests_)
    if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
}

void PeerNotes::send(const PeerNote& note) {
  if (!requests_.empty()) return;
  outgoing_ = {note.problem, note.call, note.submitted, note.finished};
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    check_mpi(MPI_Isend(outgoing_.data(), static_cast<int>(outgoing_.size()), MPI_INT64_T, r, kTag,
                        comm_, &requests_.emplace_back(MPI_REQUEST_NULL)),
              "MPI_Isend");
  }
}

std::optional<PeerNote> PeerNotes::poll() {
  int arrived = 0;
  MPI_Status status;
  check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, kTag, comm_, &arrived, &status), "MPI_Iprobe");
  if (!arrived) return std::nullopt;
  Message m = {};
  check_mpi(MPI_Recv(m.data(), static_cast<int>(m.size()), MPI_INT64_T, status.MPI_SOURCE, kTag,
                     comm_, MPI_STATUS_IGNORE),
            "MPI_Recv");
  return PeerNote{status.MPI_SOURCE, m[0], m[1], m[2], m[3]};
}

}  // namespace longspan::cuda
