/// Which groups serve a device: over NCCL, or staged through the host and MPI.
#pragma once

#include <memory>
#include <string>

#include "parallel/cuda/nccl_group.hpp"
#include "parallel/process_group.hpp"

namespace longspan::cuda {

struct GroupOptions {
  std::string communication = "auto";  ///< auto (NCCL where every rank has it) | nccl | staged
  bool share_gpu = false;              ///< several ranks use one GPU
  bool deterministic = false;          ///< the same bits in every run
  NcclOptions nccl = {};
};

/// Groups on the memory of `device`, ordered with the compute stream.
class DeviceGroups {
 public:
  DeviceGroups(int device, cudaStream_t compute, GroupOptions options)
      : device_(device), compute_(compute), options_(std::move(options)) {}
  /// Over a duplicate of `comm`. Collective. Throws Error on every rank if communication=nccl and
  /// one of them has none.
  std::unique_ptr<ProcessGroup> make(const Communicator& comm) const;
  /// "groups over NCCL 2.28.9", "groups over MPI through the host (why)"; of this rank.
  std::string description() const;

 private:
  int device_;
  cudaStream_t compute_;
  GroupOptions options_;
};

}  // namespace longspan::cuda
