/// NCCL as a table of functions: the library is opened at run time, so that the plug-in loads
/// without it, and tests put another behind it. The declarations are those of nccl.h 2.18 and
/// later, which keep them (nccl_api.cpp checks it where the header is).
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstddef>
#include <string>

struct ncclComm;  // NCCL's

namespace longspan::cuda {

using NcclComm = ncclComm*;

enum class NcclResult : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
};

struct NcclUniqueId {
  char internal[128];
};

/// As far as NCCL 2.18 knows it; later versions take what is missing as not set.
struct NcclConfig {
  std::size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef, version = 21800;
  int blocking = 0;
  int cga_cluster_size = INT_MIN, min_ctas = INT_MIN, max_ctas = INT_MIN;
  const char* net_name = nullptr;
  int split_share = INT_MIN;
};

inline constexpr int kNcclFloat32 = 7, kNcclSum = 0;

struct NcclApi {
  NcclResult (*get_version)(int* version);
  NcclResult (*get_unique_id)(NcclUniqueId* id);
  NcclResult (*comm_init_rank_config)(NcclComm* comm, int ranks, NcclUniqueId id, int rank,
                                      NcclConfig* config);
  NcclResult (*comm_finalize)(NcclComm comm);
  NcclResult (*comm_destroy)(NcclComm comm);
  NcclResult (*comm_abort)(NcclComm comm);
  NcclResult (*comm_get_async_error)(NcclComm comm, NcclResult* state);
  const char* (*get_error_string)(NcclResult result);
  const char* (*get_last_error)(NcclComm comm);
  NcclResult (*group_start)();
  NcclResult (*group_end)();
  NcclResult (*all_reduce)(const void* from, void* to, std::size_t count, int type, int op,
                           NcclComm comm, cudaStream_t stream);
  NcclResult (*reduce)(const void* from, void* to, std::size_t count, int type, int op, int root,
                       NcclComm comm, cudaStream_t stream);
  NcclResult (*reduce_scatter)(const void* from, void* to, std::size_t count, int type, int op,
                               NcclComm comm, cudaStream_t stream);
  NcclResult (*all_gather)(const void* from, void* to, std::size_t count, int type, NcclComm comm,
                           cudaStream_t stream);
  NcclResult (*broadcast)(const void* from, void* to, std::size_t count, int type, int root,
                          NcclComm comm, cudaStream_t stream);
  NcclResult (*send)(const void* from, std::size_t count, int type, int peer, NcclComm comm,
                     cudaStream_t stream);
  NcclResult (*receive)(void* to, std::size_t count, int type, int peer, NcclComm comm,
                        cudaStream_t stream);
};

/// The library's functions, opened at the first call; null, and why in `problem`, if there is no
/// libnccl.so.2 that has them all.
const NcclApi* nccl_api(std::string& problem);

/// "2.28.9". Does not need a GPU.
std::string version_of(const NcclApi& api);

/// How several ranks share one GPU, which NCCL refuses as long as they look like one node: every
/// rank says that it is a node of its own (NCCL_HOSTID) and all talk through the loopback device.
/// Of the environment's own settings only NCCL_HOSTID is replaced. It tests the calls, it says
/// nothing about speed. Call it before the first NCCL call of the process.
void share_gpu_between_ranks(int world_rank);
/// One algorithm and protocol for all sums (NCCL_ALGO=Ring, NCCL_PROTO=Simple), unless the
/// environment chooses: see nccl_group.hpp. Call it before the first NCCL call of the process.
void fix_nccl_algorithm();
/// Kernels of several communicators run in the order in which they were launched (NCCL 2.26 and
/// later), so that two groups of one GPU cannot wait for each other. As above.
void order_nccl_launches();

}  // namespace longspan::cuda
