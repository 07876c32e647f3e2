#include "parallel/communicator.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <limits>
#include <numeric>
#include <thread>
#include <utility>

#include "parallel/error.hpp"

namespace longspan {
namespace {

using parallel::check_mpi;

constexpr std::chrono::microseconds kLongestNap{1000};

bool started_alone() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"})
    if (std::getenv(name) != nullptr) return false;
  return true;
}

using flight::Element;
using flight::Operation;

std::int64_t all_reduce(MPI_Comm comm, std::int64_t value, MPI_Op op) {
  if (comm == MPI_COMM_NULL) return value;
  std::int64_t result = 0;
  check_mpi(MPI_Allreduce(&value, &result, 1, MPI_INT64_T, op, comm), "MPI_Allreduce");
  return result;
}

/// The world ranks of a communicator's members, in its order. Local.
std::vector<int> world_ranks(MPI_Comm comm, int size) {
  std::vector<int> own(static_cast<std::size_t>(size)), ranks(own.size());
  std::iota(own.begin(), own.end(), 0);
  MPI_Group members = MPI_GROUP_NULL, world = MPI_GROUP_NULL;
  MPI_Comm_group(comm, &members);
  MPI_Comm_group(MPI_COMM_WORLD, &world);
  MPI_Group_translate_ranks(members, size, own.data(), world, ranks.data());
  MPI_Group_free(&members);
  MPI_Group_free(&world);
  return ranks;
}

}  // namespace

MpiRuntime::MpiRuntime() {
  if (started_alone()) {
    ::setenv("OMPI_MCA_pml", "ob1", 0);
    ::setenv("OMPI_MCA_btl", "self,vader", 0);
  }
  // Without "put": with it a receiver has to ask for what is behind the first 128 KiB, and over TCP
  // it asks behind what it is sending itself, so that two ranks send one after the other instead of
  // at the same time (measured at 50 and 200 Mbit/s: steps 1.7 times as long).
  ::setenv("OMPI_MCA_btl_tcp_flags", "send,inplace,need-ack,need-csum,hetero-rdma", 0);
  int provided = 0;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_MULTIPLE)
    fail(
        "this MPI library offers thread level {}, MPI_THREAD_MULTIPLE is needed to overlap "
        "communication "
        "with compute: use an MPI built with thread support",
        provided);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
}

MpiRuntime::~MpiRuntime() {
  if (std::uncaught_exceptions() == 0) MPI_Finalize();
}

bool MpiRuntime::active() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized && !finalized;
}

Communicator::Communicator(MPI_Comm comm, bool owned, std::string name, flight::Thread thread)
    : comm_(comm),
      owned_(owned),
      background_(thread == flight::Thread::kSaving),
      name_(std::move(name)) {
  if (comm_ == MPI_COMM_NULL) return;
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
  if (size_ > 1) group_ = flight::recorder().begin_group(name_, world_ranks(comm_, size_), thread);
}

Communicator Communicator::world() {
  return Communicator(MPI_COMM_WORLD, false, "world", flight::Thread::kTraining);
}
Communicator Communicator::self() {
  return Communicator(MPI_COMM_NULL, false, "self", flight::Thread::kTraining);
}

Communicator::Communicator(Communicator&& other) noexcept
    : comm_(std::exchange(other.comm_, MPI_COMM_NULL)),
      owned_(std::exchange(other.owned_, false)),
      background_(other.background_),
      group_(std::exchange(other.group_, -1)),
      name_(std::move(other.name_)),
      rank_(other.rank_),
      size_(other.size_) {}

Communicator& Communicator::operator=(Communicator&& other) noexcept {
  std::swap(comm_, other.comm_);
  std::swap(owned_, other.owned_);
  std::swap(background_, other.background_);
  std::swap(group_, other.group_);
  std::swap(name_, other.name_);
  std::swap(rank_, other.rank_);
  std::swap(size_, other.size_);
  return *this;
}

Communicator::~Communicator() {
  if (group_ >= 0) flight::recorder().end_group(group_);
  // Freeing communicates: not while an exception travels, the peers may never come.
  if (owned_ && std::uncaught_exceptions() == 0 && MpiRuntime::active()) MPI_Comm_free(&comm_);
}

Communicator Communicator::split(int color, int key, const std::string& name) const {
  if (comm_ == MPI_COMM_NULL) return self();
  MPI_Comm part = MPI_COMM_NULL;
  {
    const flight::Scope scope(group_, Operation::kNewGroup, Element::kByte, 0);
    check_mpi(MPI_Comm_split(comm_, color, key, &part), "MPI_Comm_split");
  }
  return Communicator(part, true, name, flight::Thread::kTraining);
}

Communicator Communicator::split_by_node() const {
  if (comm_ == MPI_COMM_NULL) return self();
  MPI_Comm part = MPI_COMM_NULL;
  {
    const flight::Scope scope(group_, Operation::kNewGroup, Element::kByte, 0);
    check_mpi(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &part),
              "MPI_Comm_split_type");
  }
  return Communicator(part, true, "node", flight::Thread::kTraining);
}

Communicator Communicator::duplicate(flight::Thread thread) const {
  if (comm_ == MPI_COMM_NULL) return self();
  MPI_Comm copy = MPI_COMM_NULL;
  {
    const flight::Scope scope(group_, Operation::kNewGroup, Element::kByte, 0);
    check_mpi(MPI_Comm_dup(comm_, &copy), "MPI_Comm_dup");
  }
  return Communicator(copy, true, name_, thread);
}

Communicator Communicator::duplicate() const {
  return duplicate(flight::Thread::kTraining);
}
Communicator Communicator::duplicate_for_transfers() const {
  return duplicate(flight::Thread::kTransfer);
}
Communicator Communicator::duplicate_for_background() const {
  return duplicate(flight::Thread::kSaving);
}

void Communicator::meet() const {
  if (!background_ || comm_ == MPI_COMM_NULL) return;
  // A blocking collective spins until the last rank has come: seconds, if that one's disk is slow.
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Ibarrier(comm_, &request), "MPI_Ibarrier");
  int done = 0;
  for (auto nap = std::chrono::microseconds(20);; nap = std::min(2 * nap, kLongestNap)) {
    check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done) return;
    std::this_thread::sleep_for(nap);
  }
}

void Communicator::barrier() const {
  const flight::Scope scope(group_, Operation::kBarrier, Element::kByte, 0);
  meet();
  if (comm_ != MPI_COMM_NULL) check_mpi(MPI_Barrier(comm_), "MPI_Barrier");
}

std::int64_t Communicator::all_reduce_sum(std::int64_t value) const {
  const flight::Scope scope(group_, Operation::kAllReduce, Element::kInt64, sizeof value);
  meet();
  return all_reduce(comm_, value, MPI_SUM);
}
std::int64_t Communicator::all_reduce_min(std::int64_t value) const {
  const flight::Scope scope(group_, Operation::kAllReduce, Element::kInt64, sizeof value);
  meet();
  return all_reduce(comm_, value, MPI_MIN);
}
std::int64_t Communicator::all_reduce_max(std::int64_t value) const {
  const flight::Scope scope(group_, Operation::kAllReduce, Element::kInt64, sizeof value);
  meet();
  return all_reduce(comm_, value, MPI_MAX);
}

double Communicator::all_reduce_sum(double value) const {
  double sum = 0;
  for (double part : all_gather(value)) sum += part;
  return sum;
}

double Communicator::all_reduce_max(double value) const {
  const flight::Scope scope(group_, Operation::kAllReduce, Element::kFloat64, sizeof value);
  meet();
  if (comm_ == MPI_COMM_NULL) return value;
  double result = 0;
  check_mpi(MPI_Allreduce(&value, &result, 1, MPI_DOUBLE, MPI_MAX, comm_), "MPI_Allreduce");
  return result;
}

std::int64_t Communicator::broadcast(std::int64_t value, int root) const {
  const flight::Scope scope(group_, Operation::kBroadcast, Element::kInt64, sizeof value);
  meet();
  if (comm_ != MPI_COMM_NULL)
    check_mpi(MPI_Bcast(&value, 1, MPI_INT64_T, root, comm_), "MPI_Bcast");
  return value;
}

std::string Communicator::broadcast(const std::string& text, int root) const {
  if (comm_ == MPI_COMM_NULL) return text;
  const std::int64_t length = broadcast(static_cast<std::int64_t>(text.size()), root);
  std::string result = rank_ == root ? text : std::string(static_cast<std::size_t>(length), '\0');
  const flight::Scope scope(group_, Operation::kBroadcast, Element::kByte, length);
  check_mpi(MPI_Bcast(result.data(), static_cast<int>(length), MPI_BYTE, root, comm_), "MPI_Bcast");
  return result;
}

std::vector<std::string> Communicator::gather(const std::string& text, int root) const {
  if (comm_ == MPI_COMM_NULL) return {text};
  const std::vector<std::int64_t> lengths = all_gather(static_cast<std::int64_t>(text.size()));
  std::vector<int> counts(lengths.size()), offsets(lengths.size());
  std::int64_t total = 0;
  for (std::size_t r = 0; r < lengths.size(); ++r) {
    counts[r] = static_cast<int>(lengths[r]);
    offsets[r] = static_cast<int>(total);
    total += lengths[r];
  }
  if (total > std::numeric_limits<int>::max())
    fail("gathering {} bytes of text exceeds MPI's 2 GiB limit", total);
  const flight::Scope scope(group_, Operation::kGather, Element::kByte,
                            static_cast<std::int64_t>(text.size()));
  std::string all(rank_ == root ? static_cast<std::size_t>(total) : 0, '\0');
  check_mpi(MPI_Gatherv(text.data(), static_cast<int>(text.size()), MPI_BYTE, all.data(),
                        counts.data(), offsets.data(), MPI_BYTE, root, comm_),
            "MPI_Gatherv");
  std::vector<std::string> parts;
  if (rank_ == root)
    for (std::size_t r = 0; r < lengths.size(); ++r)
      parts.push_back(
          all.substr(static_cast<std::size_t>(offsets[r]), static_cast<std::size_t>(counts[r])));
  return parts;
}

std::vector<std::int64_t> Communicator::all_gather(std::int64_t value) const {
  const flight::Scope scope(group_, Operation::kAllGather, Element::kInt64, sizeof value);
  meet();
  if (comm_ == MPI_COMM_NULL) return {value};
  std::vector<std::int64_t> all(static_cast<std::size_t>(size_));
  check_mpi(MPI_Allgather(&value, 1, MPI_INT64_T, all.data(), 1, MPI_INT64_T, comm_),
            "MPI_Allgather");
  return all;
}

std::vector<double> Communicator::all_gather(double value) const {
  const flight::Scope scope(group_, Operation::kAllGather, Element::kFloat64, sizeof value);
  meet();
  if (comm_ == MPI_COMM_NULL) return {value};
  std::vector<double> all(static_cast<std::size_t>(size_));
  check_mpi(MPI_Allgather(&value, 1, MPI_DOUBLE, all.data(), 1, MPI_DOUBLE, comm_),
            "MPI_Allgather");
  return all;
}

}  // namespace longspan
