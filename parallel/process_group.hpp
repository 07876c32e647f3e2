/// Bulk collectives on tensors. The MPI version (mpi_group.cpp) serves the CPU; a plug-in brings
/// others. Sums are taken in rank order, so the same ranks give the same bits every time
/// (MPI_Allreduce does not promise that). Operations of one group run in the order in which they
/// were started, on a communication thread that keeps MPI moving while the caller computes. Read
/// next: data_parallel.hpp, context_parallel.hpp.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "parallel/array.hpp"
#include "parallel/communicator.hpp"

namespace longspan {

/// A collective on its way. Its buffers belong to it until wait() returns; wait() throws Error if
/// it failed. On a device whose work is asynchronous, it begins behind what the compute stream was
/// given before it was started, and what the stream is given after wait() comes behind it: callers
/// need not synchronise.
class Pending {
 public:
  virtual ~Pending() = default;
  virtual void wait() = 0;
};
using PendingPtr = std::unique_ptr<Pending>;

class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// data += the other ranks' data, in place; same length on every rank.
  virtual PendingPtr all_reduce_sum(View<float> data) = 0;
  /// gathered[r] = rank r's `mine`; gathered has size() * mine.size() elements; `mine` may be its
  /// own part.
  virtual PendingPtr all_gather(View<const float> mine, View<float> gathered) = 0;
  /// mine = sum over ranks of their parts[rank()], in rank order; parts has size() * mine.size()
  /// elements.
  virtual PendingPtr reduce_scatter_sum(View<const float> parts, View<float> mine) = 0;
  /// The same in place, for any length: part r of `data`, elements [part_begin(n, r, size()),
  /// part_begin(n, r + 1, size())) of its n, becomes on rank r the sum over all ranks, in rank
  /// order; the other parts stay as they are.
  virtual PendingPtr reduce_scatter_parts(View<float> data) = 0;
  /// Part r of `data`, split in the same way, becomes what rank r has there.
  virtual PendingPtr all_gather_parts(View<float> data) = 0;
  /// Sends `outgoing` to rank `to` and fills `incoming` from rank `from`, both at once.
  virtual PendingPtr send_receive(View<const float> outgoing, int to, View<float> incoming,
                                  int from) = 0;

  /// Part r of `outgoing` goes to rank r and becomes part rank() of its `incoming`; parts lie one
  /// behind the other in rank order, part r of outgoing (incoming) has outgoing_counts[r]
  /// (incoming_counts[r]) elements. Counts may differ and be 0; what a rank sends to another must
  /// be what that one expects. Throws Error if the counts are not size() many, or do not add up to
  /// the lengths. The counts are copied.
  virtual PendingPtr all_to_all(View<const float> outgoing,
                                const std::vector<std::int64_t>& outgoing_counts,
                                View<float> incoming,
                                const std::vector<std::int64_t>& incoming_counts) = 0;

  /// Bytes this rank has sent since the group was made.
  virtual std::int64_t bytes_sent() const = 0;
  /// Seconds the caller has spent inside wait() since the group was made: communication that was
  /// not hidden.
  virtual double exposed_seconds() const = 0;
};

/// Collectives over a duplicate of `comm`, by MPI. Collective.
std::unique_ptr<ProcessGroup> make_mpi_group(const Communicator& comm);

/// Makes the groups whose tensors lie on the device of a run. Collective over the communicator.
using MakeGroup = std::function<std::unique_ptr<ProcessGroup>(const Communicator&)>;

}  // namespace longspan
