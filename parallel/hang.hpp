/// Why a run stands still: every rank's account of itself, as it lies in the run's `watch` folder,
/// and what can be concluded from all of them. Pure, without MPI. Read next: watchdog.hpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "parallel/flight_recorder.hpp"

namespace longspan::parallel {

/// An operation that a rank is in, and has been for `seconds`.
struct OpenOperation {
  std::string name;  ///< all_reduce, ...
  std::string element;
  std::int64_t sequence = 0, bytes = 0, step = 0;
  double seconds = 0;
};

/// What a rank knows of one of its groups. (name, copy, members) is the same on all of them.
struct WatchedGroup {
  std::string name;
  int copy = 0;
  std::vector<int> members;  ///< world ranks
  bool saving = false;       ///< works for checkpoints, beside the steps
  std::int64_t begun = 0;    ///< sequence number of the last operation that the rank has joined
  std::optional<OpenOperation> open;

  bool is(const WatchedGroup& other) const {
    return name == other.name && copy == other.copy && members == other.members;
  }
};

/// A rank's account of itself.
struct RankState {
  int rank = -1;
  std::string node;
  std::int64_t process = 0;   ///< its id on that node
  std::int64_t answered = 0;  ///< number of the last question that this answers
  bool ended = false;         ///< its training is over; nobody has to wait for it
  std::int64_t step = 0;      ///< that it works on, counted from 1
  std::string phase;
  bool patient = false;  ///< a phase in which a rank may work for long: start, save ...
  bool saving = false;   ///< the disk may be busy
  double phase_seconds = 0;
  double written = 0;          ///< seconds since 1970
  int waits_in = -1;           ///< index into groups of what training waits for
  std::int64_t waits_for = 0;  ///< sequence number there
  std::vector<WatchedGroup> groups;
};

RankState state_of(const flight::Snapshot& snapshot, flight::Clock::time_point now);

/// JSON, one line. Members as ranges: "0-3,8", "1-7:2".
std::string to_json(const RankState& state);
/// Nothing if the text is not a whole account.
std::optional<RankState> parse_rank_state(const std::string& text);

std::string to_ranges(const std::vector<int>& numbers);
std::optional<std::vector<int>> parse_ranges(const std::string& text);

enum class Fault { kSilent, kBehind, kDeadlock, kMismatch, kNetwork };
/// What stops the run.
struct HangVerdict {
  Fault fault = Fault::kNetwork;
  std::vector<int> culprits;  ///< world ranks; empty for kNetwork
  bool patient = false;       ///< the culprits are alive and in a phase that may take long
  std::string collective;     ///< "all_reduce 37 of group context (ranks 0-1), 4096 bytes, step 12"
  std::vector<int> missing;   ///< members of that group that have not arrived in it
};

/// `states[r]`: rank r's last account. A rank is silent if it has not answered question `question`.
/// `asker` has an operation open in its group number `group`; from there the waits are followed to
/// ranks that wait for nobody.
HangVerdict find_fault(const std::vector<RankState>& states, std::int64_t question, int asker,
                       int group);

/// One line: who is stuck, where, in which collective, who has not arrived. `conditions[r]` is what
/// is known of rank r's process besides ("is stopped", ...), empty if nothing.
std::string describe(const HangVerdict& verdict, const std::vector<RankState>& states,
                     const std::vector<std::string>& conditions, double waited_seconds, double now);
/// One line: what a rank did last.
std::string describe(const RankState& state, double now);

}  // namespace longspan::parallel
