#include "parallel/cuda/nccl_api.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <optional>

#if __has_include(<nccl.h>) && !defined(LONGSPAN_CUDA_EMULATED)
#include <nccl.h>
#endif

namespace longspan::cuda {
namespace {

#ifdef NCCL_VERSION_CODE
static_assert(sizeof(NcclUniqueId) == sizeof(ncclUniqueId));
static_assert(offsetof(NcclConfig, blocking) == offsetof(ncclConfig_t, blocking));
static_assert(offsetof(NcclConfig, split_share) == offsetof(ncclConfig_t, splitShare));
static_assert(static_cast<int>(ncclInProgress) == static_cast<int>(NcclResult::kInProgress));
static_assert(static_cast<int>(ncclRemoteError) == static_cast<int>(NcclResult::kRemoteError));
static_assert(static_cast<int>(ncclFloat32) == kNcclFloat32 &&
              static_cast<int>(ncclSum) == kNcclSum);
#endif

struct Library {
  NcclApi api = {};
  std::string problem;
};

template <class Function>
void find(void* library, Library& into, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr && into.problem.empty())
    into.problem = fmt::format("libnccl.so.2 has no {}: NCCL 2.18 or later is needed", name);
}

Library open_library() {
  Library result;
#if defined(LONGSPAN_CUDA_EMULATED)
  const char* const file = std::getenv("LONGSPAN_CUDA_EMULATOR_NCCL");  // tests name their own
  if (file == nullptr) {
    result.problem = "the emulator has no libnccl.so.2";
    return result;
  }
#else
  const char* const file = "libnccl.so.2";
#endif
  void* const library = ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const text = ::dlerror();
    result.problem = text != nullptr ? text : "libnccl.so.2 cannot be opened";
    return result;
  }
  NcclApi& api = result.api;
  find(library, result, "ncclGetVersion", api.get_version);
  find(library, result, "ncclGetUniqueId", api.get_unique_id);
  find(library, result, "ncclCommInitRankConfig", api.comm_init_rank_config);
  find(library, result, "ncclCommFinalize", api.comm_finalize);
  find(library, result, "ncclCommDestroy", api.comm_destroy);
  find(library, result, "ncclCommAbort", api.comm_abort);
  find(library, result, "ncclCommGetAsyncError", api.comm_get_async_error);
  find(library, result, "ncclGetErrorString", api.get_error_string);
  find(library, result, "ncclGetLastError", api.get_last_error);
  find(library, result, "ncclGroupStart", api.group_start);
  find(library, result, "ncclGroupEnd", api.group_end);
  find(library, result, "ncclAllReduce", api.all_reduce);
  find(library, result, "ncclReduce", api.reduce);
  find(library, result, "ncclReduceScatter", api.reduce_scatter);
  find(library, result, "ncclAllGather", api.all_gather);
  find(library, result, "ncclBroadcast", api.broadcast);
  find(library, result, "ncclSend", api.send);
  find(library, result, "ncclRecv", api.receive);
  return result;
}

}  // namespace

const NcclApi* nccl_api(std::string& problem) {
  static const Library library = open_library();  // stays open: communicators live to the end
  problem = library.problem;
  return problem.empty() ? &library.api : nullptr;
}

std::string version_of(const NcclApi& api) {
  int version = 0;
  if (api.get_version(&version) != NcclResult::kSuccess) return "unknown";
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

void share_gpu_between_ranks(int world_rank) {
  ::setenv("NCCL_HOSTID", fmt::format("longspan-rank-{}", world_rank).c_str(), 1);
  // NCCL 2.30 and later: the supported way, beside the other.
  ::setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 0);
  for (const auto& [name, value] :
       {std::pair{"NCCL_SOCKET_IFNAME", "lo"}, std::pair{"NCCL_IB_DISABLE", "1"},
        std::pair{"NCCL_MNNVL_ENABLE", "0"}, std::pair{"NCCL_NVLS_ENABLE", "0"},
        std::pair{"NCCL_RAS_ENABLE", "0"}, std::pair{"NCCL_MAX_NCHANNELS", "2"}})
    ::setenv(name, value, 0);
  fix_nccl_algorithm();
}

void fix_nccl_algorithm() {
  ::setenv("NCCL_ALGO", "Ring", 0);
  ::setenv("NCCL_PROTO", "Simple", 0);
}

void order_nccl_launches() {
  ::setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 0);
}

}  // namespace longspan::cuda
