/// MPI as the rest of the program sees it: the runtime, an owned communicator, and collectives on
/// small host values (sizes, texts, decisions). Bulk tensors go through process_group.hpp.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/flight_recorder.hpp"

namespace longspan {

/// MPI_Init_thread(MULTIPLE) to MPI_Finalize. Alone on a node (no launcher in the environment) it
/// selects shared memory before it starts: probing the fabrics would cost 0.2 s. While an exception
/// is in flight the destructor does not wait for the peers.
class MpiRuntime {
 public:
  MpiRuntime();
  ~MpiRuntime();
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;
  /// Whether a runtime exists in this process.
  static bool active();
};

/// Owns one MPI communicator (world is borrowed). All methods are collective over it unless they
/// say otherwise. Of several ranks each operation is noted in flight_recorder.hpp, under the name
/// of the group.
class Communicator {
 public:
  static Communicator world();  ///< not collective
  /// A communicator of this process alone; needs no MPI runtime, so tools can use the same code
  /// paths.
  static Communicator self();

  Communicator(Communicator&& other) noexcept;
  Communicator& operator=(Communicator&& other) noexcept;
  ~Communicator();

  int rank() const { return rank_; }
  int size() const { return size_; }
  MPI_Comm raw() const { return comm_; }
  const std::string& name() const { return name_; }
  /// Its id in the flight recorder; < 0 of a rank alone.
  int flight_group() const { return group_; }

  /// Ranks with equal `color`, ordered by `key`.
  Communicator split(int color, int key, const std::string& name = "part") const;
  /// The ranks that share memory with this one.
  Communicator split_by_node() const;
  Communicator duplicate() const;
  /// A duplicate that a ProcessGroup's transfer thread uses.
  Communicator duplicate_for_transfers() const;
  /// A duplicate for a thread beside the one that computes: a collective that has to wait for other
  /// ranks sleeps instead of taking a core. Up to a millisecond slower.
  Communicator duplicate_for_background() const;

  void barrier() const;
  std::int64_t all_reduce_sum(std::int64_t value) const;
  std::int64_t all_reduce_min(std::int64_t value) const;
  std::int64_t all_reduce_max(std::int64_t value) const;
  /// Summed in rank order on every rank: the same bits everywhere and every time.
  double all_reduce_sum(double value) const;
  double all_reduce_max(double value) const;
  std::string broadcast(const std::string& text, int root) const;
  std::int64_t broadcast(std::int64_t value, int root) const;
  /// One entry per rank on `root`, empty elsewhere.
  std::vector<std::string> gather(const std::string& text, int root) const;
  std::vector<std::int64_t> all_gather(std::int64_t value) const;
  std::vector<double> all_gather(double value) const;

 private:
  Communicator(MPI_Comm comm, bool owned, std::string name, flight::Thread thread);
  Communicator duplicate(flight::Thread thread) const;
  /// Of a background communicator: returns when all ranks have come.
  void meet() const;
  MPI_Comm comm_ = MPI_COMM_NULL;  ///< MPI_COMM_NULL for self()
  bool owned_ = false;
  bool background_ = false;
  int group_ = -1;
  std::string name_ = {};
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace longspan
