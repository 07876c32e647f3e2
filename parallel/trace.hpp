/// What the threads of this process do, as spans of time: recorded while somebody wants to know
/// (log.trace), else every call costs one look at a flag. Safe from every thread; nothing here
/// communicates. Read next: launcher/step_trace.hpp, which writes the file.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace longspan::trace {

using Clock = std::chrono::steady_clock;
/// Numbers that go with a span: {"bytes", 4096}.
using Numbers = std::vector<std::pair<std::string, double>>;

/// One thread of a picture. Spans of a track lie inside or behind each other, unless it is a track
/// of operations in flight, which overlap as they like.
struct Track {
  std::string name;
  bool in_flight = false;
};

struct Event {
  std::string name;
  Track track;
  Clock::time_point begin = {}, end = {};
  Numbers numbers = {};
};

class Recorder {
 public:
  bool on() const { return on_.load(std::memory_order_relaxed); }
  /// Forgets what was recorded before.
  void start();
  /// In the order in which they began; what has not ended ends now.
  std::vector<Event> stop();

  /// Returns what end() takes. Without a track: that of the calling thread.
  std::uint64_t begin(std::string name, Numbers numbers = {}, std::optional<Track> track = {});
  void end(std::uint64_t ticket);
  /// The calling thread goes from one phase, which ends, to the next; no time lies between them.
  void enter(std::string phase);

 private:
  std::uint64_t add(std::string name, Numbers numbers, Track track, Clock::time_point begin);

  std::atomic<bool> on_ = false;
  std::mutex mutex_;
  std::uint64_t first_ticket_ = 1;  ///< of events_[0]: tickets of earlier recordings mean nothing
  std::vector<Event> events_;
  std::vector<bool> ended_;
  std::uint64_t phase_ = 0;
};

Recorder& recorder();

/// The track of the calling thread; "training" unless said otherwise.
void name_thread(std::string track);

/// What lasts as long as this.
class Span {
 public:
  Span() = default;
  explicit Span(std::string name, Numbers numbers = {}, std::optional<Track> track = {})
      : ticket_(recorder().on()
                    ? recorder().begin(std::move(name), std::move(numbers), std::move(track))
                    : 0) {}
  Span(Span&& other) noexcept : ticket_(std::exchange(other.ticket_, 0)) {}
  Span& operator=(Span&& other) noexcept {
    std::swap(ticket_, other.ticket_);
    return *this;
  }
  ~Span() { end(); }
  void end() {
    if (ticket_ != 0) recorder().end(std::exchange(ticket_, 0));
  }

 private:
  std::uint64_t ticket_ = 0;
};

}  // namespace longspan::trace
