#include "parallel/trace.hpp"

namespace longspan::trace {
namespace {

thread_local std::string thread_track = "training";

}  // namespace

void Recorder::start() {
  const std::lock_guard lock(mutex_);
  first_ticket_ += events_.size();
  events_.clear();
  ended_.clear();
  phase_ = 0;
  on_ = true;
}

std::vector<Event> Recorder::stop() {
  const std::lock_guard lock(mutex_);
  const auto now = Clock::now();
  on_ = false;
  for (std::size_t i = 0; i < events_.size(); ++i)
    if (!ended_[i]) events_[i].end = now;
  first_ticket_ += events_.size();
  ended_.clear();
  return std::exchange(events_, {});
}

std::uint64_t Recorder::add(std::string name, Numbers numbers, Track track,
                            Clock::time_point begin) {
  events_.push_back({std::move(name), std::move(track), begin, begin, std::move(numbers)});
  ended_.push_back(false);
  return first_ticket_ + events_.size() - 1;
}

std::uint64_t Recorder::begin(std::string name, Numbers numbers, std::optional<Track> track) {
  const std::lock_guard lock(mutex_);
  if (!on_) return 0;
  return add(std::move(name), std::move(numbers), track ? *std::move(track) : Track{thread_track},
             Clock::now());
}

void Recorder::end(std::uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  if (ticket < first_ticket_ || ticket - first_ticket_ >= events_.size()) return;
  const std::size_t at = ticket - first_ticket_;
  events_[at].end = Clock::now();
  ended_[at] = true;
}

void Recorder::enter(std::string phase) {
  if (!on()) return;
  const std::lock_guard lock(mutex_);
  if (!on_) return;
  const auto now = Clock::now();
  if (phase_ != 0) {
    events_[phase_ - first_ticket_].end = now;
    ended_[phase_ - first_ticket_] = true;
  }
  phase_ = add(std::move(phase), {}, {thread_track}, now);
}

Recorder& recorder() {
  static Recorder* const one = new Recorder;  // outlives every thread
  return *one;
}

void name_thread(std::string track) {
  thread_track = std::move(track);
}

}  // namespace longspan::trace
