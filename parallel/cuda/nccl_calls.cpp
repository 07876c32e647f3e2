#include "parallel/cuda/nccl_calls.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <utility>

#include "parallel/agree.hpp"
#include "parallel/error.hpp"
#include "parallel/hang.hpp"

namespace longspan::cuda {
namespace {

using flight::Clock;
using flight::recorder;

// Problems that NCCL has no number for.
constexpr std::int64_t kNoProgress = 100, kToldByPeer = 101, kCudaError = 102;

constexpr auto kLook = std::chrono::milliseconds(1), kIdle = std::chrono::milliseconds(20);
constexpr double kLeave = 10;  // seconds for the last words

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

UrgentStream::UrgentStream() {
  int least = 0, greatest = 0;
  LONGSPAN_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  LONGSPAN_CUDA(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
}

NcclCalls::NcclCalls(const NcclApi& api, const Communicator& comm, int device, cudaStream_t compute,
                     const NcclOptions& options)
    : comm_(comm.duplicate_for_transfers()),
      options_(options),
      device_(device),
      compute_(compute),
      nccl_(api),
      notes_(comm_.raw()) {
  // Not over comm_: the flight recorder numbers its calls.
  for (const std::int64_t rank : comm.all_gather(std::int64_t{Communicator::world().rank()}))
    world_ranks_.push_back(static_cast<int>(rank));
  // Only rank 0 makes an id, but all must know whether it could.
  NcclUniqueId id = {};
  agree(comm, [&] {
    if (rank() != 0) return;
    const NcclResult made = api.get_unique_id(&id);
    if (made != NcclResult::kSuccess) fail("NCCL cannot start: {}", nccl_.text(made));
  });
  const std::string text = comm.broadcast(std::string(id.internal, sizeof id.internal), 0);
  std::memcpy(id.internal, text.data(), sizeof id.internal);
  const NcclResult begun = nccl_.connect(id, size(), rank());
  if (NcclCommunicator::bad(begun))
    handed_over_ = Problem{static_cast<std::int64_t>(begun), nullptr};
  connect();
  thread_ = std::thread([this] { watch(); });
}

void NcclCalls::connect() {
  const auto begin = Clock::now();
  for (NcclResult state = NcclResult::kInProgress; state == NcclResult::kInProgress;) {
    if (handed_over_) give_up(*handed_over_, std::nullopt);
    if (const auto note = notes_.poll()) give_up({kToldByPeer, nullptr}, note);
    state = nccl_.state();
    if (NcclCommunicator::bad(state)) give_up({static_cast<std::int64_t>(state), nullptr}, {});
    if (state == NcclResult::kInProgress && seconds_since(begin) > options_.setup_seconds)
      give_up({kNoProgress, nullptr}, std::nullopt);
    if (!failure_.empty()) fail("{}", failure_);
    if (state == NcclResult::kInProgress) std::this_thread::sleep_for(kLook);
  }
  connected_ = true;
}

NcclCalls::~NcclCalls() {
  const bool unwinding = std::uncaught_exceptions() > 0;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
    // A peer may never come: nothing of it is waited for.
    if (unwinding) open_.clear();
  }
  if (thread_.joinable()) thread_.join();
  recorder().end_device_wait(comm_.flight_group());  // of a call that was given up
  if (unwinding || !failure_.empty())
    nccl_.abort();
  else
    nccl_.finish(kLeave);
}

NcclCalls::CallPtr NcclCalls::start(flight::Operation operation, std::int64_t floats,
                                    const Work& work) {
  auto call = std::make_shared<Call>();
  call->operation = operation;
  call->bytes = floats * static_cast<std::int64_t>(sizeof(float));
  call->ready.record(compute_);
  call->ready.make_wait(stream_.native());
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) throw_failure();
    call->sequence = ++submitted_;
    open_.push_back(call);
    changed_.notify_all();
  }
  NcclResult state = nccl_.submit([&](NcclComm comm) { return work(comm, stream_.native()); });
  // As a rule it has been handed over when one looks; the first of a kind connects the ranks.
  for (int spin = 0; state == NcclResult::kInProgress; ++spin) {
    if (spin > 100) std::this_thread::sleep_for(std::chrono::microseconds(20));
    state = nccl_.state();
  }
  std::unique_lock lock(mutex_);
  if (failure_.empty() && state == NcclResult::kSuccess) {
    call->done.record(stream_.native());
    call->submitted = true;
    return call;
  }
  if (!handed_over_) handed_over_ = Problem{static_cast<std::int64_t>(state), call};
  changed_.notify_all();
  changed_.wait(lock, [this] { return !failure_.empty(); });
  throw_failure();
}

void NcclCalls::wait(Call& call) {
  Event here(true);
  here.record(compute_);
  call.done.make_wait(compute_);
  {
    const std::lock_guard lock(mutex_);
    call.waited = std::move(here);
  }
  // The caller waits too: what it does next (an update of the weights, a checkpoint) must not work
  // on data that never arrived. An abort lets the stream go on as if they had.
  for (int spin = 0; !call.done.reached(); ++spin) {
    if (spin > 100) std::this_thread::sleep_for(std::chrono::microseconds(20));
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) throw_failure();
  }
  const NcclResult state = nccl_.state();
  std::unique_lock lock(mutex_);
  if (giving_up_ || NcclCommunicator::bad(state)) {
    if (!giving_up_ && !handed_over_)
      handed_over_ = Problem{static_cast<std::int64_t>(state), call.shared_from_this()};
    changed_.notify_all();
    changed_.wait(lock, [this] { return !failure_.empty(); });
  }
  if (!failure_.empty()) throw_failure();
}

void NcclCalls::leave(Call& call) noexcept {
  try {
    call.done.make_wait(compute_);
  } catch (const std::exception&) {
    // The device is lost; who uses it next will say so.
  }
}

void NcclCalls::throw_failure() {
  throw Error(failure_);
}

double NcclCalls::exposed_seconds() const {
  const std::lock_guard lock(mutex_);
  collect_exposed();
  return exposed_seconds_;
}

/// Between the compute stream's arrival and the end of the call it waited for.
void NcclCalls::collect_exposed() const {
  std::erase_if(waited_, [this](const CallPtr& call) {
    if (!call->waited) return call.use_count() == 1;  // dropped
    if (!call->waited->reached()) return false;
    exposed_seconds_ += std::max(0.0, call->waited->seconds_until(call->done));
    return true;
  });
}

void NcclCalls::watch() {
  (void)cudaSetDevice(device_);
  std::unique_lock lock(mutex_);
  for (;;) {
    if (open_.empty() && stop_) return;
    if (open_.empty())
      changed_.wait_for(lock, kIdle, [this] { return stop_ || handed_over_ || !open_.empty(); });
    else
      changed_.wait_for(lock, kLook, [this] { return handed_over_.has_value(); });
    const CallPtr head = open_.empty() ? nullptr : open_.front();
    const std::optional<Problem> problem = handed_over_;
    lock.unlock();
    try {
      if (const auto note = notes_.poll())
        give_up({kToldByPeer, head}, note);
      else if (problem)
        give_up(*problem, std::nullopt);
      else if (head != nullptr)
        look(head);
    } catch (const std::exception&) {
      give_up({kCudaError, head}, std::nullopt);
    }
    lock.lock();
    if (!failure_.empty()) return;
  }
}

void NcclCalls::look(const CallPtr& head) {
  if (!head->ticket) {
    if (!head->ready.reached()) return;  // the compute stream has not come to it
    head->begin = Clock::now();
    head->ticket = recorder().begin(comm_.flight_group(), head->operation,
                                    flight::Element::kFloat32, head->bytes);
  }
  bool submitted = false, needed = false;
  {
    const std::lock_guard lock(mutex_);
    submitted = head->submitted;
    needed = head->waited.has_value();
  }
  if (submitted && head->done.reached()) {
    finish_head();
    return;
  }
  if (needed && !head->announced && head->waited->reached()) {
    recorder().begin_device_wait(comm_.flight_group(), head->sequence);
    head->announced = true;
  }
  const NcclResult state = nccl_.state();
  if (NcclCommunicator::bad(state))
    give_up({static_cast<std::int64_t>(state), head}, std::nullopt);
  else if (options_.deadline_seconds > 0 && seconds_since(head->begin) > options_.deadline_seconds)
    give_up({kNoProgress, head}, std::nullopt);
}

void NcclCalls::finish_head() {
  const std::lock_guard lock(mutex_);
  if (open_.empty()) return;
  const CallPtr head = open_.front();
  open_.pop_front();
  finished_ = head->sequence;
  if (head->announced) recorder().end_device_wait(comm_.flight_group());
  recorder().end(comm_.flight_group(), *head->ticket);
  waited_.push_back(head);
  if (waited_.size() > 64) collect_exposed();
  changed_.notify_all();
}

std::string NcclCalls::group_text() const {
  return fmt::format("group {} (ranks {})", comm_.name(), parallel::to_ranges(world_ranks_));
}

std::string NcclCalls::describe(std::int64_t code, double seconds) {
  if (code == kNoProgress && seconds == 0) return "no progress";
  if (code == kNoProgress) return fmt::format("no progress for {:.1f} s", seconds);
  if (code == kCudaError) return "the GPU reports an error";
  if (code == kToldByPeer) return "another rank had given up";
  return nccl_.text(static_cast<NcclResult>(code));
}

void NcclCalls::give_up(const Problem& problem, const std::optional<PeerNote>& told) {
  PeerNote own;
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) return;
    giving_up_ = true;
    own = {rank(), problem.code, problem.call ? problem.call->sequence : 0, submitted_, finished_};
  }
  const Call* const call = problem.call.get();
  const double waited =
      call != nullptr && call->ticket ? seconds_since(call->begin) : options_.setup_seconds;
  std::string text = call == nullptr ? fmt::format("NCCL: connecting {}", group_text())
                                     : fmt::format("NCCL: {} {} of {}, {} bytes",
                                                   flight::to_string(call->operation),
                                                   call->sequence, group_text(), call->bytes);
  text += fmt::format(": {}", describe(problem.code, waited));

  notes_.send(own);
  if (call != nullptr && call->ticket) recorder().fail(comm_.flight_group(), *call->ticket);
  nccl_.abort();
  std::vector<std::optional<PeerNote>> accounts(static_cast<std::size_t>(size()));
  accounts[static_cast<std::size_t>(rank())] = own;
  const auto keep = [&](const PeerNote& note) {
    accounts[static_cast<std::size_t>(note.rank)] = note;
  };
  if (told) keep(*told);
  const auto begin = Clock::now();
  while (std::any_of(accounts.begin(), accounts.end(), [](const auto& a) { return !a; }) &&
         seconds_since(begin) < options_.answer_seconds) {
    if (const auto note = notes_.poll())
      keep(*note);
    else
      std::this_thread::sleep_for(kLook);
  }

  constexpr int kShown = 8;
  int shown = 0, left_out = 0;
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) continue;
    const auto& account = accounts[static_cast<std::size_t>(r)];
    // Who has come as far as this rank and has nothing to say is no news among many.
    if (shown == kShown) {
      ++left_out;
      continue;
    }
    ++shown;
    const int name = world_ranks_[static_cast<std::size_t>(r)];
    if (!account)
      text += fmt::format("; rank {} does not answer", name);
    else
      text += fmt::format("; rank {} had started {} calls and finished {}{}", name,
                          account->submitted, account->finished,
                          account->problem == kToldByPeer
                              ? ""
                              : fmt::format(" ({})", describe(account->problem, 0)));
  }
  if (left_out > 0) text += fmt::format("; {} more", left_out);
  text += fmt::format("; this rank had started {} and finished {}. The group was aborted",
                      own.submitted, own.finished);
  const std::lock_guard lock(mutex_);
  failure_ = text;
  changed_.notify_all();
}

}  // namespace longspan::cuda
