#include "parallel/flight_recorder.hpp"

#include <algorithm>
#include <utility>

namespace longspan::flight {
namespace {

double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

std::string_view to_string(Operation operation) {
  switch (operation) {
    case Operation::kBarrier:
      return "barrier";
    case Operation::kAllReduce:
      return "all_reduce";
    case Operation::kReduceScatter:
      return "reduce_scatter";
    case Operation::kAllGather:
      return "all_gather";
    case Operation::kGather:
      return "gather";
    case Operation::kBroadcast:
      return "broadcast";
    case Operation::kSendReceive:
      return "send_receive";
    case Operation::kAllToAll:
      return "all_to_all";
    case Operation::kNewGroup:
      return "new_group";
  }
  return "unknown";
}

std::string_view to_string(Phase phase) {
  switch (phase) {
    case Phase::kStart:
      return "start";
    case Phase::kData:
      return "data";
    case Phase::kCompute:
      return "forward and backward";
    case Phase::kUpdate:
      return "optimizer";
    case Phase::kReport:
      return "metrics";
    case Phase::kValidate:
      return "validation";
    case Phase::kSave:
      return "save";
    case Phase::kEnd:
      return "end";
  }
  return "unknown";
}

std::string_view to_string(Element element) {
  switch (element) {
    case Element::kByte:
      return "byte";
    case Element::kInt64:
      return "int64";
    case Element::kFloat32:
      return "float32";
    case Element::kFloat64:
      return "float64";
  }
  return "unknown";
}

Recorder::Recorder() : ring_(kRecords) {}

int Recorder::begin_group(std::string name, std::vector<int> members, Thread thread) {
  const std::lock_guard lock(mutex_);
  int copy = 0;
  for (const Group& g : groups_)
    if (g.used && g.state.name == name && g.state.members == members)
      copy = std::max(copy, g.state.copy + 1);
  const int id = static_cast<int>(groups_.size());
  Group& group = groups_.emplace_back();
  group.state = {id, std::move(name), copy, std::move(members), thread, 0, std::nullopt};
  group.used = true;
  return id;
}

void Recorder::end_group(int group) {
  const std::lock_guard lock(mutex_);
  groups_[static_cast<std::size_t>(group)].used = false;
}

std::uint64_t Recorder::begin(int group, Operation operation, Element element, std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  Group& g = groups_[static_cast<std::size_t>(group)];
  const std::uint64_t ticket = tickets_++;
  const Record record{group, operation, element,      phase_,       ++g.state.begun,
                      bytes, step_,     Clock::now(), std::nullopt, false};
  ring_[ticket % kRecords] = record;
  g.state.open = record;
  g.ticket = ticket;
  if (g.state.thread == Thread::kTraining) wait_ = Wait{group, record.sequence, record.begin};
  return ticket;
}

void Recorder::end(int group, std::uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  const auto now = Clock::now();
  Group& g = groups_[static_cast<std::size_t>(group)];
  if (g.ticket == ticket) g.state.open.reset();
  if (g.state.thread == Thread::kTraining && wait_) {
    waited_seconds_ += seconds(now - wait_->begin);
    wait_.reset();
  }
  // A long wait may have been overtaken by a whole ring of other groups' operations.
  if (tickets_ - ticket <= kRecords) ring_[ticket % kRecords].end = now;
}

void Recorder::fail(int group, std::uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  Group& g = groups_[static_cast<std::size_t>(group)];
  if (g.ticket == ticket && g.state.open) g.state.open->failed = true;
  if (tickets_ - ticket <= kRecords) ring_[ticket % kRecords].failed = true;
}

trace::Span Recorder::span(int group, Operation operation, std::int64_t bytes) const {
  std::string name(to_string(operation)), of;
  std::optional<trace::Track> track;
  {
    const std::lock_guard lock(mutex_);
    const GroupState& state = groups_[static_cast<std::size_t>(group)].state;
    of = state.name;
    if (state.thread == Thread::kTransfer) track = trace::Track{"transfers: " + of};
  }
  if (!track) name += " (" + of + ")";
  return trace::Span(std::move(name), {{"bytes", static_cast<double>(bytes)}}, std::move(track));
}

void Recorder::begin_wait(int group, std::int64_t sequence) {
  if (paused_) return;
  const std::lock_guard lock(mutex_);
  wait_ = Wait{group, sequence, Clock::now()};
}

void Recorder::end_wait() {
  if (paused_) return;
  const std::lock_guard lock(mutex_);
  if (wait_) waited_seconds_ += seconds(Clock::now() - wait_->begin);
  wait_.reset();
}

void Recorder::begin_device_wait(int group, std::int64_t sequence) {
  if (paused_) return;
  const std::lock_guard lock(mutex_);
  device_waits_.push_back({group, sequence, Clock::now()});
}

void Recorder::end_device_wait(int group) {
  const std::lock_guard lock(mutex_);
  for (const Wait& wait : device_waits_)
    if (wait.group == group) waited_seconds_ += seconds(Clock::now() - wait.begin);
  std::erase_if(device_waits_, [&](const Wait& wait) { return wait.group == group; });
}

double Recorder::waited_seconds() const {
  const std::lock_guard lock(mutex_);
  return waited_seconds_;
}

void Recorder::enter(Phase phase, std::int64_t step) {
  trace::recorder().enter(std::string(to_string(phase)));
  const std::lock_guard lock(mutex_);
  phase_ = phase;
  step_ = step;
  phase_begin_ = Clock::now();
}

Snapshot Recorder::snapshot(bool with_records) const {
  const std::lock_guard lock(mutex_);
  Snapshot result{step_, phase_, phase_begin_, wait_, {}, {}};
  if (!result.wait && !device_waits_.empty()) result.wait = device_waits_.front();
  for (const Group& g : groups_)
    if (g.used || with_records) result.groups.push_back(g.state);
  if (with_records) {
    const std::uint64_t first = tickets_ > kRecords ? tickets_ - kRecords : 0;
    for (std::uint64_t t = first; t < tickets_; ++t) result.records.push_back(ring_[t % kRecords]);
  }
  return result;
}

Recorder& recorder() {
  static Recorder* const one = new Recorder;  // outlives every thread
  return *one;
}

}  // namespace longspan::flight
