/// Carries out the program of a step on all ranks. What nobody else can disturb is worked out at
/// once; messages over an adapter that is shared are taken in the order of time, and share its
/// bandwidth evenly while they overlap.
#pragma once

#include <cstdint>
#include <queue>
#include <vector>

#include "launcher/simulation_program.hpp"
#include "parallel/random.hpp"

namespace longspan::launcher {

/// What happened to one rank in a step, in seconds.
struct RankOutcome {
  double end = 0, computed = 0;
  double waited[kChannels] = {};
  double waited_for(Channel c) const { return waited[static_cast<int>(c)]; }
  double waited_context() const {
    return waited_for(Channel::kContext) + waited_for(Channel::kHeads);
  }
};

class Engine {
 public:
  /// `rank`: a machine's for_rank(). `slower`: [ranks], times. All but `slower` outlive the engine.
  Engine(const StepProgram& program, const StepPieces& pieces, const MachineDescription& rank,
         const Placement& placement, bool contention, std::vector<double> slower);
  /// One step. `left_out`: micro-batches that are not in the program; each takes what the second
  /// one does.
  std::vector<RankOutcome> run(std::uint64_t key, double jitter, double left_out);

 private:
  /// Of a rank's ring messages at most two are under way; a neighbour is a few behind at the most.
  static constexpr std::int32_t kWindow = 8;

  struct RankState {
    std::size_t next_op = 0;
    double now = 0, speed = 1;  ///< speed: seconds times this
    std::int32_t waits_exchange = -1, waits_collective = -1;
    Channel waits_in = Channel::kContext;
    // Its ring messages, sent one after the other.
    std::int32_t sent = 0;  ///< messages that are over
    double free = 0;        ///< when the last of them was
    bool sending = false;   ///< the next one is on a shared adapter
    RankOutcome outcome, first_mark;
  };
  struct Message {
    std::int32_t slot = -1;
    int posted = 0;  ///< by sender and receiver
    bool over = false;
    double ready = 0, end = 0, bytes = 0, latencies = 0;
  };
  struct Collective {
    int posted = 0, flowing = 0;
    bool over = false;
    double ready = 0, end = 0;
  };
  struct GroupState {
    std::int32_t finished = 0;  ///< collectives that are over
    double free = 0;
    bool flowing = false;
  };
  struct Flow {
    double finish;  ///< in bytes of the adapter's clock
    std::int32_t rank, slot;
    Channel channel;
    bool message;
  };
  /// Processor sharing by a clock that counts the bytes one of the flows has been given.
  struct Adapter {
    double clock = 0, last = 0;
    std::uint32_t version = 0;
    std::vector<Flow> flows;
  };
  struct Event {
    double time;
    std::uint64_t order;
    std::int32_t adapter;
    std::uint32_t version;  ///< of a completion
    bool arrival;
    Flow flow;  ///< of an arrival; finish: its bytes
  };
  struct Later {
    bool operator()(const Event& a, const Event& b) const {
      return a.time > b.time || (a.time == b.time && a.order > b.order);
    }
  };

  void reset();
  void advance(int rank, std::uint64_t key, double jitter);
  bool wait_exchange(int rank, std::int32_t slot);
  bool wait_collective(int rank, Channel channel, std::int32_t slot);
  void post_message(int rank, const Op& op);
  void start_messages(int sender);
  void message_over(int sender, double end);
  void post_collective(int rank, const Op& op);
  void start_collectives(Channel channel, int group);
  void collective_over(Channel channel, int group, std::int32_t slot, double end);
  void handle(const Event& event);
  void expect_completion(int adapter);

  int group_of(int rank, Channel c) const;
  int groups(Channel c) const { return ranks_ / program_.shape(c).size; }
  Message& message(int sender, std::int32_t slot) {
    return messages_[static_cast<std::size_t>(sender * kWindow + slot % kWindow)];
  }
  Collective& collective(Channel c, int group, std::int32_t slot) {
    const auto i = static_cast<std::size_t>(c);
    return collectives_[i][static_cast<std::size_t>(group) *
                               static_cast<std::size_t>(program_.channels[i].posted) +
                           static_cast<std::size_t>(slot)];
  }
  GroupState& group(Channel c, int g) {
    return groups_[static_cast<std::size_t>(c)][static_cast<std::size_t>(g)];
  }
  RankState& state(int rank) { return states_[static_cast<std::size_t>(rank)]; }

  const StepProgram& program_;
  const Placement placement_;
  const MachineLink inside_, between_;
  const int ranks_;
  const bool contention_;
  std::vector<double> slower_;
  MachineLink links_[kChannels];    ///< of the closed formulas
  bool networked_[kChannels] = {};  ///< groups of the channel cross nodes
  double adapter_bandwidth_ = 0;
  std::vector<int> adapter_of_;  ///< [ranks]
  std::vector<int> next_, previous_;
  std::vector<char> over_network_;  ///< [ranks] its ring message leaves the node
  std::vector<const Op*> collective_ops_[kChannels];

  std::vector<RankState> states_;
  std::vector<Message> messages_;
  std::vector<Collective> collectives_[kChannels];
  std::vector<GroupState> groups_[kChannels];
  std::vector<Adapter> adapters_;
  std::priority_queue<Event, std::vector<Event>, Later> events_;
  std::uint64_t order_ = 0;
  std::vector<int> runnable_;
};

}  // namespace longspan::launcher
