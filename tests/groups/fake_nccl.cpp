#include "groups/fake_nccl.hpp"

#include <mpi.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

using longspan::cuda::NcclApi;
using longspan::cuda::NcclConfig;
using longspan::cuda::NcclResult;
using longspan::cuda::NcclUniqueId;
using longspan::groups_test::nccl_faults;

namespace {

using R = NcclResult;

void nap() {
  std::this_thread::sleep_for(std::chrono::microseconds(100));
}

/// One of the operations of a group: what it sends and receives, and what it does then.
struct Operation {
  struct Message {
    const float* from = nullptr;
    float* to = nullptr;
    std::size_t count = 0;
    int peer = 0;
  };
  std::vector<Message> messages;
  std::shared_ptr<std::vector<float>> arrived;
  std::function<void()> after = [] {};
};

}  // namespace

struct ncclComm {
  int rank = 0, size = 1, tag = 0;
  std::vector<int> world;  ///< ranks of the members
  std::atomic<bool> aborted{false}, connected{false};
  std::atomic<int> error{0}, in_progress{0};
  std::atomic<long> running{0};
  std::thread connecting;
  std::vector<Operation> group;
  cudaStream_t stream = nullptr;
};

namespace {

thread_local int depth = 0;
thread_local ncclComm* grouped = nullptr;

/// A duplicate of the world that only this file uses; made by make_api(), collectively.
MPI_Comm wire() {
  static MPI_Comm comm = [] {
    MPI_Comm made = MPI_COMM_NULL;
    MPI_Comm_dup(MPI_COMM_WORLD, &made);
    return made;
  }();
  return comm;
}

/// Sends and receives all of it; false if the communicator was aborted meanwhile.
bool deliver(ncclComm& c, const std::vector<Operation>& group) {
  std::vector<MPI_Request> requests;
  for (const Operation& op : group)
    for (const auto& m : op.messages) {
      const int peer = c.world[static_cast<std::size_t>(m.peer)], n = static_cast<int>(m.count);
      requests.push_back(MPI_REQUEST_NULL);
      if (m.to != nullptr)
        MPI_Irecv(m.to, n, MPI_FLOAT, peer, c.tag, wire(), &requests.back());
      else
        MPI_Isend(m.from, n, MPI_FLOAT, peer, c.tag, wire(), &requests.back());
    }
  for (int done = 0; !done;) {
    MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
    if (!done && c.aborted) {
      for (MPI_Request& r : requests) {
        if (r == MPI_REQUEST_NULL) continue;
        MPI_Cancel(&r);
        MPI_Request_free(&r);
      }
      return false;
    }
    if (!done) nap();
  }
  return true;
}

struct Launch {
  ncclComm* comm;
  std::vector<Operation> group;
  bool hangs;
};

/// What the kernel would do.
void run(void* data) {
  const std::unique_ptr<Launch> launch(static_cast<Launch*>(data));
  ncclComm& c = *launch->comm;
  while (launch->hangs && !c.aborted) nap();
  if (!c.aborted && deliver(c, launch->group))
    for (const Operation& op : launch->group) op.after();
  --c.running;
}

/// Every rank finds the others through rank 0, whose place and a number of its own the id holds.
void connect(ncclComm& c, std::int64_t root) {
  std::vector<std::int64_t> places(static_cast<std::size_t>(c.size));
  int me = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &me);
  MPI_Request request = MPI_REQUEST_NULL;
  const auto finish = [&] {
    for (int done = 0; !done && !c.aborted;) {
      MPI_Test(&request, &done, MPI_STATUS_IGNORE);
      if (!done) nap();
    }
    return !c.aborted;
  };
  const std::int64_t mine[2] = {c.rank, me};
  if (c.rank == 0) {
    places[0] = me;
    for (int i = 1; i < c.size; ++i) {
      std::int64_t theirs[2] = {};
      MPI_Irecv(theirs, 2, MPI_INT64_T, MPI_ANY_SOURCE, c.tag, wire(), &request);
      if (!finish()) return;
      places[static_cast<std::size_t>(theirs[0])] = theirs[1];
    }
    for (int i = 1; i < c.size; ++i)
      MPI_Send(places.data(), c.size, MPI_INT64_T,
               static_cast<int>(places[static_cast<std::size_t>(i)]), c.tag, wire());
  } else {
    MPI_Send(mine, 2, MPI_INT64_T, static_cast<int>(root), c.tag, wire());
    MPI_Irecv(places.data(), c.size, MPI_INT64_T, static_cast<int>(root), c.tag, wire(), &request);
    if (!finish()) return;
  }
  for (const std::int64_t place : places) c.world.push_back(static_cast<int>(place));
  c.connected = true;
}

R add(ncclComm* c, cudaStream_t stream, Operation operation) {
  if (depth == 0) return R::kInvalidUsage;  // the group's code always groups
  if (c->in_progress > 0 || !c->connected) ++nccl_faults().used_while_in_progress;
  if (nccl_faults().refuse_call == nccl_faults().calls) return R::kInvalidArgument;
  grouped = c;
  c->stream = stream;
  c->group.push_back(std::move(operation));
  return R::kSuccess;
}

const float* in(const void* p) {
  return static_cast<const float*>(p);
}
float* out(void* p) {
  return static_cast<float*>(p);
}

/// What every rank contributes arrives here, and is added in rank order into `to`. `from(r)`: what
/// goes to rank r. Only ranks for which `gets` is true receive.
template <class From, class Gets>
Operation sum(ncclComm* c, const From& from, const Gets& gets, float* to, std::size_t n) {
  Operation op;
  op.arrived = std::make_shared<std::vector<float>>(n * static_cast<std::size_t>(c->size));
  for (int r = 0; r < c->size; ++r) {
    if (r == c->rank) continue;
    if (gets(r)) op.messages.push_back({from(r), nullptr, n, r});
    if (gets(c->rank))
      op.messages.push_back({nullptr, op.arrived->data() + static_cast<std::size_t>(r) * n, n, r});
  }
  if (!gets(c->rank)) return op;
  op.after = [arrived = op.arrived, own = from(c->rank), to, n, size = c->size, me = c->rank] {
    std::vector<float> total(n);
    for (int r = 0; r < size; ++r) {
      const float* part = r == me ? own : arrived->data() + static_cast<std::size_t>(r) * n;
      for (std::size_t i = 0; i < n; ++i) total[i] = r == 0 ? part[i] : total[i] + part[i];
    }
    std::memcpy(to, total.data(), n * sizeof(float));
  };
  return op;
}

}  // namespace

extern "C" {

R ncclGetVersion(int* version) {
  *version = 22809;
  return R::kSuccess;
}

R ncclGetUniqueId(NcclUniqueId* id) {
  static std::int64_t next = 0;
  int me = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &me);
  const std::int64_t content[2] = {me, 100 + 64 * next++ + me};
  std::memcpy(id->internal, content, sizeof content);
  return R::kSuccess;
}

R ncclCommInitRankConfig(ncclComm** comm, int ranks, NcclUniqueId id, int rank,
                         NcclConfig* config) {
  if (config->blocking != 0 || config->magic != 0xcafebeef) return R::kInvalidArgument;
  if (nccl_faults().fail_connect) return R::kSystemError;
  std::int64_t content[2];
  std::memcpy(content, id.internal, sizeof content);
  auto* c = new ncclComm;
  c->rank = rank, c->size = ranks, c->tag = static_cast<int>(content[1]);
  const bool hangs = nccl_faults().hang_connect;
  wire();
  c->connecting = std::thread([c, root = content[0], hangs] {
    if (!hangs) connect(*c, root);
  });
  *comm = c;
  return R::kInProgress;
}

R ncclCommGetAsyncError(ncclComm* c, R* state) {
  if (c->error != 0)
    *state = static_cast<R>(c->error.load());
  else if (!c->connected)
    *state = R::kInProgress;
  else
    *state = c->in_progress > 0 && c->in_progress-- > 0 ? R::kInProgress : R::kSuccess;
  return R::kSuccess;
}

R ncclCommFinalize(ncclComm* c) {
  c->in_progress = 3;
  return R::kInProgress;
}

R ncclCommDestroy(ncclComm* c) {
  while (c->running > 0) nap();
  c->connecting.join();
  delete c;
  ++nccl_faults().destroys;
  return R::kSuccess;
}

R ncclCommAbort(ncclComm* c) {
  c->aborted = true;
  while (c->running > 0) nap();
  c->connecting.join();
  delete c;
  ++nccl_faults().aborts;
  return R::kSuccess;
}

const char* ncclGetErrorString(R result) {
  return result == R::kRemoteError ? "remote process exited or there was a network error"
                                   : "a fake error";
}
const char* ncclGetLastError(ncclComm*) {
  return "the fake\nsays so";
}

R ncclGroupStart() {
  ++depth;
  return R::kSuccess;
}

R ncclGroupEnd() {
  if (--depth > 0 || grouped == nullptr) return R::kSuccess;
  ncclComm* const c = std::exchange(grouped, nullptr);
  auto& faults = nccl_faults();
  const int call = faults.calls++;
  if (faults.error_from_call >= 0 && call >= faults.error_from_call)
    c->error = faults.error_code.load();
  const bool hangs = faults.hang_from_call >= 0 && call >= faults.hang_from_call;
  c->in_progress = faults.polls_in_progress.load();
  ++c->running;
  auto* launch = new Launch{c, std::exchange(c->group, {}), hangs};
#ifdef LONGSPAN_FAKE_NCCL_SYNCHRONOUS
  run(launch);
#else
  cudaLaunchHostFunc(c->stream, run, launch);
#endif
  return c->in_progress > 0 ? R::kInProgress : R::kSuccess;
}

R ncclAllReduce(const void* from, void* to, std::size_t n, int, int, ncclComm* c,
                cudaStream_t stream) {
  return add(c, stream,
             sum(
                 c, [&](int) { return in(from); }, [](int) { return true; }, out(to), n));
}

R ncclReduce(const void* from, void* to, std::size_t n, int, int, int root, ncclComm* c,
             cudaStream_t stream) {
  return add(c, stream,
             sum(
                 c, [&](int) { return in(from); }, [&](int r) { return r == root; }, out(to), n));
}

R ncclReduceScatter(const void* from, void* to, std::size_t n, int, int, ncclComm* c,
                    cudaStream_t stream) {
  return add(c, stream,
             sum(
                 c, [&](int r) { return in(from) + static_cast<std::size_t>(r) * n; },
                 [](int) { return true; }, out(to), n));
}

R ncclAllGather(const void* from, void* to, std::size_t n, int, ncclComm* c, cudaStream_t stream) {
  Operation op;
  for (int r = 0; r < c->size; ++r) {
    if (r == c->rank) continue;
    op.messages.push_back({in(from), nullptr, n, r});
    op.messages.push_back({nullptr, out(to) + static_cast<std::size_t>(r) * n, n, r});
  }
  op.after = [from, own = out(to) + static_cast<std::size_t>(c->rank) * n, n] {
    std::memmove(own, from, n * sizeof(float));
  };
  return add(c, stream, std::move(op));
}

R ncclBroadcast(const void* from, void* to, std::size_t n, int, int root, ncclComm* c,
                cudaStream_t stream) {
  Operation op;
  if (c->rank != root) op.messages.push_back({nullptr, out(to), n, root});
  for (int r = 0; r < c->size && c->rank == root; ++r)
    if (r != root) op.messages.push_back({in(from), nullptr, n, r});
  return add(c, stream, std::move(op));
}

R ncclSend(const void* from, std::size_t n, int, int peer, ncclComm* c, cudaStream_t stream) {
  Operation op;
  op.messages.push_back({in(from), nullptr, n, peer});
  return add(c, stream, std::move(op));
}

R ncclRecv(void* to, std::size_t n, int, int peer, ncclComm* c, cudaStream_t stream) {
  Operation op;
  op.messages.push_back({nullptr, out(to), n, peer});
  return add(c, stream, std::move(op));
}

}  // extern "C"

namespace longspan::groups_test {

void NcclFaults::reset() {
  hang_from_call = error_from_call = refuse_call = -1;
  error_code = 6;
  hang_connect = fail_connect = false;
  polls_in_progress = 0;
  calls = aborts = destroys = used_while_in_progress = 0;
}

NcclFaults& nccl_faults() {
  static NcclFaults& faults = *[] {
    auto* made = new NcclFaults;
    if (const char* call = std::getenv("LONGSPAN_FAKE_NCCL_ERROR_FROM_CALL"))
      made->error_from_call = std::atoi(call);
    return made;
  }();
  return faults;
}

const cuda::NcclApi& fake_nccl() {
  wire();
  static const NcclApi api = {
      ncclGetVersion,   ncclGetUniqueId,   ncclCommInitRankConfig, ncclCommFinalize,
      ncclCommDestroy,  ncclCommAbort,     ncclCommGetAsyncError,  ncclGetErrorString,
      ncclGetLastError, ncclGroupStart,    ncclGroupEnd,           ncclAllReduce,
      ncclReduce,       ncclReduceScatter, ncclAllGather,          ncclBroadcast,
      ncclSend,         ncclRecv};
  return api;
}

}  // namespace longspan::groups_test
