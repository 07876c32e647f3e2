#include "parallel/cuda/device_group.hpp"

#include "parallel/agree.hpp"
#include "parallel/cuda/staged_group.hpp"

namespace longspan::cuda {

std::unique_ptr<ProcessGroup> DeviceGroups::make(const Communicator& comm) const {
  if (options_.communication == "staged" || comm.size() == 1)
    return make_staged_group(comm, device_, compute_);
  std::string problem;
  const NcclApi* const api = nccl_api(problem);
  if (options_.communication == "nccl")
    agree(comm, [&] {
      if (api == nullptr)
        fail(
            "run.communication=nccl: {}: install NCCL where the loader looks (LD_LIBRARY_PATH), or "
            "set run.communication=staged",
            problem);
    });
  else if (comm.all_reduce_min(std::int64_t{api != nullptr}) == 0)
    return make_staged_group(comm, device_, compute_);
  // What NCCL reads from the environment when it is first called.
  if (options_.share_gpu) share_gpu_between_ranks(Communicator::world().rank());
  if (options_.deterministic) fix_nccl_algorithm();
  order_nccl_launches();
  return make_nccl_group(*api, comm, device_, compute_, options_.nccl);
}

std::string DeviceGroups::description() const {
  if (options_.communication == "staged") return "groups over MPI through the host";
  std::string problem;
  const NcclApi* const api = nccl_api(problem);
  if (api == nullptr) return "groups over MPI through the host (" + problem + ")";
  return "groups over NCCL " + version_of(*api);
}

}  // namespace longspan::cuda
