/// The last collectives of this process, with what they waited for: a ring of fixed size that every
/// Communicator and ProcessGroup writes into (about 0.2 us an operation, no allocation), and that
/// the watchdog reads when a run stands still. Operations of one group are numbered in the order in
/// which they begin; as all its ranks make the same calls, the numbers of one group mean the same
/// call on every rank. Nothing here communicates. Read next: hang.hpp, watchdog.hpp.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/trace.hpp"

namespace longspan::flight {

using Clock = std::chrono::steady_clock;

enum class Operation : std::uint8_t {
  kBarrier,
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kGather,
  kBroadcast,
  kSendReceive,
  kAllToAll,
  kNewGroup,  ///< a split or a duplicate of the group
};
std::string_view to_string(Operation operation);

/// What the training thread is doing.
enum class Phase : std::uint8_t {
  kStart,
  kData,
  kCompute,  ///< forward and backward
  kUpdate,   ///< the rest of the reduction, and the optimizer
  kReport,
  kValidate,
  kSave,
  kEnd,
};
std::string_view to_string(Phase phase);

enum class Element : std::uint8_t { kByte, kInt64, kFloat32, kFloat64 };
std::string_view to_string(Element element);

/// Which thread carries a group's operations out.
enum class Thread : std::uint8_t {
  kTraining,  ///< it waits in the operation itself
  kTransfer,  ///< of a ProcessGroup; the training thread waits for it only when it needs the result
  kSaving,    ///< of the checkpoint saver, whose disk may be slow
};

/// One operation of one group, as this rank saw it.
struct Record {
  int group = -1;  ///< id in this process, of begin_group()
  Operation operation = Operation::kBarrier;
  Element element = Element::kByte;
  Phase phase = Phase::kStart;
  std::int64_t sequence = 0;  ///< from 1, in its group
  std::int64_t bytes = 0;     ///< of this rank's own contribution
  std::int64_t step = 0;
  Clock::time_point begin = {};
  std::optional<Clock::time_point> end = {};  ///< none while it goes on
  bool failed = false;                        ///< it will never end
};

struct GroupState {
  int id = -1;
  std::string name;          ///< world, data, context, tensor, replicas, node ...
  int copy = 0;              ///< distinguishes duplicates of one group: 0, 1, ...
  std::vector<int> members;  ///< world ranks
  Thread thread = Thread::kTraining;
  std::int64_t begun = 0;      ///< sequence number of the last operation that this rank has joined
  std::optional<Record> open;  ///< that operation, as long as it goes on
};

/// What the training thread waits for.
struct Wait {
  int group = -1;
  std::int64_t sequence = 0;
  Clock::time_point begin = {};
};

struct Snapshot {
  std::int64_t step = 0;
  Phase phase = Phase::kStart;
  Clock::time_point phase_begin = {};
  std::optional<Wait> wait;
  std::vector<GroupState> groups;
  std::vector<Record> records;  ///< oldest first
};

/// One per process; safe from every thread.
class Recorder {
 public:
  static constexpr std::size_t kRecords = 512;

  Recorder();

  int begin_group(std::string name, std::vector<int> members, Thread thread);
  void end_group(int group);

  /// Returns a ticket for end().
  std::uint64_t begin(int group, Operation operation, Element element, std::int64_t bytes);
  void end(int group, std::uint64_t ticket);
  /// It has been given up. It stays open.
  void fail(int group, std::uint64_t ticket);
  /// The same for trace.hpp: on the track of the calling thread, or that of the group's transfers.
  trace::Span span(int group, Operation operation, std::int64_t bytes) const;

  /// The training thread waits for an operation that the transfer thread carries out.
  void begin_wait(int group, std::int64_t sequence);
  void end_wait();
  /// The compute stream of the device waits for an operation, and with it, sooner or later, the
  /// training thread. Of the group's own thread; one at a time in a group.
  void begin_device_wait(int group, std::int64_t sequence);
  void end_device_wait(int group);
  /// Seconds that the training thread has waited for other ranks since the process began.
  double waited_seconds() const;

  /// Nothing is recorded meanwhile. Only to measure what recording costs, between operations and
  /// without a watchdog: the numbers of what was missed are not given.
  void pause(bool paused) { paused_ = paused; }
  bool paused() const { return paused_; }

  void enter(Phase phase, std::int64_t step);
  /// `with_records`: the ring too, and the groups that exist no more but may be named in it.
  Snapshot snapshot(bool with_records) const;

 private:
  struct Group {
    GroupState state;
    std::uint64_t ticket = 0;
    bool used = false;
  };
  std::atomic<bool> paused_ = false;
  mutable std::mutex mutex_;
  std::vector<Group>
      groups_;  ///< by id; those that have ended stay, their records may still be there
  std::vector<Record> ring_;
  std::uint64_t tickets_ = 0;  ///< operations so far; ticket t lies in ring_[t % kRecords]
  std::int64_t step_ = 0;
  Phase phase_ = Phase::kStart;
  Clock::time_point phase_begin_ = Clock::now();
  std::optional<Wait> wait_;
  std::vector<Wait> device_waits_;  ///< oldest first
  double waited_seconds_ = 0;
};

Recorder& recorder();

/// The operation that lasts as long as this. group < 0: nothing is recorded.
class Scope {
 public:
  Scope(int group, Operation operation, Element element, std::int64_t bytes)
      : group_(recorder().paused() ? -1 : group),
        ticket_(group_ < 0 ? 0 : recorder().begin(group, operation, element, bytes)) {
    if (group_ >= 0 && trace::recorder().on()) span_ = recorder().span(group, operation, bytes);
  }
  ~Scope() {
    if (group_ >= 0) recorder().end(group_, ticket_);
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  int group_;
  std::uint64_t ticket_;
  trace::Span span_;
};

}  // namespace longspan::flight
