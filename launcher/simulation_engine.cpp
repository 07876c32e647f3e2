#include "launcher/simulation_engine.hpp"

#include <algorithm>
#include <cmath>

#include "parallel/error.hpp"

namespace longspan::launcher {

Engine::Engine(const StepProgram& program, const StepPieces& pieces, const MachineDescription& rank,
               const Placement& placement, bool contention, std::vector<double> slower)
    : program_(program),
      placement_(placement),
      inside_(rank.inside),
      between_(rank.between),
      ranks_(placement.ranks),
      contention_(contention),
      slower_(std::move(slower)),
      links_{pieces.context_link,
             pieces.scheme == model::AttentionSchemeKind::kHybrid ? pieces.heads_link
                                                                  : pieces.context_link,
             pieces.tensor_link, pieces.gradient_link, pieces.world_link} {
  const int on_node = placement.ranks_on_node();
  const int adapters = std::min(rank.adapters(), on_node);
  adapter_bandwidth_ = between_.bandwidth * on_node / adapters;
  const ChannelShape& ring = program.shape(Channel::kContext);
  for (int r = 0; r < ranks_; ++r) {
    const int node = r / placement.ranks_per_node;
    adapter_of_.push_back(node * adapters + r % placement.ranks_per_node * adapters / on_node);
    const int at = r / ring.stride % ring.size, first = r - at * ring.stride;
    next_.push_back(first + (at + 1) % ring.size * ring.stride);
    previous_.push_back(first + (at + ring.size - 1) % ring.size * ring.stride);
    over_network_.push_back(next_.back() / placement.ranks_per_node != node);
  }
  adapters_.resize(static_cast<std::size_t>(placement.nodes() * adapters));
  for (int c = 0; c < kChannels; ++c) {
    const ChannelShape& shape = program.channels[c];
    networked_[c] = shape.size > 1 && !placement.inside(shape.size, shape.stride);
    const auto count = static_cast<std::size_t>(groups(static_cast<Channel>(c)));
    groups_[c].resize(count);
    collectives_[c].resize(count * static_cast<std::size_t>(shape.posted));
  }
  for (const Op& op : program.ops)
    if (op.kind == OpKind::kCollective)
      collective_ops_[static_cast<std::size_t>(op.channel)].push_back(&op);
  states_.resize(static_cast<std::size_t>(ranks_));
  messages_.resize(static_cast<std::size_t>(ranks_) * kWindow);
}

void Engine::reset() {
  std::fill(states_.begin(), states_.end(), RankState{});
  std::fill(messages_.begin(), messages_.end(), Message{});
  for (int c = 0; c < kChannels; ++c) {
    std::fill(collectives_[c].begin(), collectives_[c].end(), Collective{});
    std::fill(groups_[c].begin(), groups_[c].end(), GroupState{});
  }
  std::fill(adapters_.begin(), adapters_.end(), Adapter{});
  order_ = 0;
}

int Engine::group_of(int rank, Channel c) const {
  const ChannelShape& shape = program_.shape(c);
  return rank / (shape.stride * shape.size) * shape.stride + rank % shape.stride;
}

std::vector<RankOutcome> Engine::run(std::uint64_t key, double jitter, double left_out) {
  reset();
  for (int r = ranks_ - 1; r >= 0; --r) runnable_.push_back(r);
  while (true) {
    while (!runnable_.empty()) {
      const int rank = runnable_.back();
      runnable_.pop_back();
      advance(rank, key, jitter);
    }
    if (events_.empty()) break;
    const Event event = events_.top();
    events_.pop();
    handle(event);
  }
  std::vector<RankOutcome> outcomes;
  double more = 0;
  for (const RankState& s : states_) {
    if (s.next_op != program_.ops.size()) fail("simulation: a rank waits for ever: a bug");
    outcomes.push_back(s.outcome);
    more = std::max(more, s.first_mark.end);
  }
  if (left_out > 0) {
    for (std::size_t r = 0; r < outcomes.size(); ++r) {
      // first_mark holds what the second micro-batch took. All ranks are as late as the latest.
      const RankOutcome& middle = states_[r].first_mark;
      outcomes[r].end += left_out * more;
      outcomes[r].computed += left_out * middle.computed;
      for (int c = 0; c < kChannels; ++c) outcomes[r].waited[c] += left_out * middle.waited[c];
    }
  }
  return outcomes;
}

void Engine::advance(int rank, std::uint64_t key, double jitter) {
  RankState& s = state(rank);
  for (; s.next_op < program_.ops.size(); ++s.next_op) {
    const Op& op = program_.ops[s.next_op];
    switch (op.kind) {
      case OpKind::kCompute:
        s.now += op.amount * s.speed;
        s.outcome.computed += op.amount * s.speed;
        break;
      case OpKind::kExchange:
        post_message(rank, op);
        break;
      case OpKind::kCollective:
        post_collective(rank, op);
        break;
      case OpKind::kWaitExchange:
        if (!wait_exchange(rank, op.slot)) return;
        break;
      case OpKind::kWaitCollective:
        if (!wait_collective(rank, op.channel, op.slot)) return;
        break;
      case OpKind::kPass:
        s.speed = slower_[static_cast<std::size_t>(rank)];
        if (jitter > 0) {
          // Log-normal with mean 1.
          const double variance = std::log1p(jitter * jitter);
          s.speed *= std::exp(std::sqrt(variance) *
                                  normal_at(derive_key(key, static_cast<std::uint64_t>(rank)),
                                            static_cast<std::uint64_t>(op.slot)) -
                              variance / 2);
        }
        break;
      case OpKind::kMicroBatchOver: {
        s.outcome.end = s.now;
        if (op.slot == 0) s.first_mark = s.outcome;
        if (op.slot != 1) break;
        // What the second one took.
        RankOutcome took = s.outcome;
        took.end -= s.first_mark.end, took.computed -= s.first_mark.computed;
        for (int c = 0; c < kChannels; ++c) took.waited[c] -= s.first_mark.waited[c];
        s.first_mark = took;
        break;
      }
    }
  }
  s.outcome.end = s.now;
}

bool Engine::wait_exchange(int rank, std::int32_t slot) {
  RankState& s = state(rank);
  const Message& out = message(rank, slot);
  const Message& in = message(previous_[static_cast<std::size_t>(rank)], slot);
  if (out.slot != slot || in.slot != slot || !out.over || !in.over) {
    s.waits_exchange = slot;
    return false;
  }
  s.waits_exchange = -1;
  const double until = std::max(out.end, in.end);
  s.outcome.waited[static_cast<int>(Channel::kContext)] += std::max(0.0, until - s.now);
  s.now = std::max(s.now, until);
  return true;
}

bool Engine::wait_collective(int rank, Channel channel, std::int32_t slot) {
  RankState& s = state(rank);
  const Collective& all = collective(channel, group_of(rank, channel), slot);
  if (!all.over) {
    s.waits_collective = slot, s.waits_in = channel;
    return false;
  }
  s.waits_collective = -1;
  s.outcome.waited[static_cast<int>(channel)] += std::max(0.0, all.end - s.now);
  s.now = std::max(s.now, all.end);
  return true;
}

void Engine::post_message(int rank, const Op& op) {
  const int from = previous_[static_cast<std::size_t>(rank)];
  for (const int sender : {rank, from}) {
    Message& m = message(sender, op.slot);
    if (m.slot != op.slot) m = {op.slot, 0, false, 0, 0, op.amount, op.latencies};
    ++m.posted;
    m.ready = std::max(m.ready, state(rank).now);
  }
  start_messages(rank);
  start_messages(from);
}

void Engine::start_messages(int sender) {
  RankState& s = state(sender);
  while (!s.sending) {
    const std::int32_t slot = s.sent;
    Message& m = message(sender, slot);
    if (m.slot != slot || m.posted < 2) return;
    const double begin = std::max(m.ready, s.free);
    if (contention_ && over_network_[static_cast<std::size_t>(sender)]) {
      s.sending = true;
      events_.push({begin + m.latencies * between_.latency, order_++,
                    adapter_of_[static_cast<std::size_t>(sender)], 0, true,
                    Flow{m.bytes, sender, slot, Channel::kContext, true}});
      return;
    }
    const MachineLink& link = contention_ ? inside_ : links_[static_cast<int>(Channel::kContext)];
    message_over(sender, begin + m.latencies * link.latency + m.bytes / link.bandwidth);
  }
}

void Engine::message_over(int sender, double end) {
  RankState& s = state(sender);
  const std::int32_t slot = s.sent;
  Message& m = message(sender, slot);
  m.over = true, m.end = end;
  s.free = end;
  ++s.sent;
  for (const int waiter : {sender, next_[static_cast<std::size_t>(sender)]}) {
    const int from = previous_[static_cast<std::size_t>(waiter)];
    if (state(waiter).waits_exchange != slot) continue;
    const Message &out = message(waiter, slot), &in = message(from, slot);
    if (out.slot == slot && in.slot == slot && out.over && in.over) {
      state(waiter).waits_exchange = -1;  // once is enough
      runnable_.push_back(waiter);
    }
  }
}

void Engine::post_collective(int rank, const Op& op) {
  const int g = group_of(rank, op.channel);
  Collective& all = collective(op.channel, g, op.slot);
  ++all.posted;
  all.ready = std::max(all.ready, state(rank).now);
  if (all.posted == program_.shape(op.channel).size) start_collectives(op.channel, g);
}

void Engine::start_collectives(Channel channel, int g) {
  GroupState& members = group(channel, g);
  const ChannelShape& shape = program_.shape(channel);
  const auto& ops = collective_ops_[static_cast<std::size_t>(channel)];
  while (!members.flowing && members.finished < shape.posted) {
    const std::int32_t slot = members.finished;
    Collective& all = collective(channel, g, slot);
    if (all.posted < shape.size) return;
    const Op& op = *ops[static_cast<std::size_t>(slot)];
    const double begin = std::max(all.ready, members.free);
    const MachineLink& link = links_[static_cast<int>(channel)];
    const double arrives = begin + op.latencies * link.latency;
    if (!contention_ || !networked_[static_cast<int>(channel)] || op.amount == 0) {
      collective_over(channel, g, slot, arrives + op.amount / link.bandwidth);
      continue;
    }
    members.flowing = true;
    all.flowing = shape.size;
    const int first = g / shape.stride * shape.stride * shape.size + g % shape.stride;
    for (int i = 0; i < shape.size; ++i) {
      const int rank = first + i * shape.stride;
      events_.push({arrives, order_++, adapter_of_[static_cast<std::size_t>(rank)], 0, true,
                    Flow{op.amount, rank, slot, channel, false}});
    }
    return;
  }
}

void Engine::collective_over(Channel channel, int g, std::int32_t slot, double end) {
  Collective& all = collective(channel, g, slot);
  GroupState& members = group(channel, g);
  all.over = true, all.end = end;
  members.free = end, members.flowing = false;
  ++members.finished;
  const ChannelShape& shape = program_.shape(channel);
  const int first = g / shape.stride * shape.stride * shape.size + g % shape.stride;
  for (int i = 0; i < shape.size; ++i) {
    RankState& s = state(first + i * shape.stride);
    if (s.waits_collective != slot || s.waits_in != channel) continue;
    s.waits_collective = -1;
    runnable_.push_back(first + i * shape.stride);
  }
}

void Engine::handle(const Event& event) {
  Adapter& a = adapters_[static_cast<std::size_t>(event.adapter)];
  if (!event.arrival && event.version != a.version) return;
  if (!a.flows.empty())
    a.clock += (event.time - a.last) * adapter_bandwidth_ / static_cast<double>(a.flows.size());
  a.last = event.time;
  if (event.arrival) {
    a.flows.push_back(event.flow);
    a.flows.back().finish += a.clock;
    return expect_completion(event.adapter);
  }
  double first = INFINITY;
  for (const Flow& flow : a.flows) first = std::min(first, flow.finish);
  a.clock = std::max(a.clock, first);  // rounding
  std::vector<Flow> over;
  std::erase_if(a.flows, [&](const Flow& flow) {
    if (flow.finish > a.clock * (1 + 1e-12)) return false;
    over.push_back(flow);
    return true;
  });
  if (a.flows.empty()) a.clock = 0;  // keeps its precision
  expect_completion(event.adapter);
  for (const Flow& flow : over) {
    if (flow.message) {
      state(flow.rank).sending = false;
      message_over(flow.rank, event.time);
      start_messages(flow.rank);
      continue;
    }
    const int g = group_of(flow.rank, flow.channel);
    if (--collective(flow.channel, g, flow.slot).flowing > 0) continue;
    collective_over(flow.channel, g, flow.slot, event.time);
    start_collectives(flow.channel, g);
  }
}

void Engine::expect_completion(int adapter) {
  Adapter& a = adapters_[static_cast<std::size_t>(adapter)];
  ++a.version;
  if (a.flows.empty()) return;
  double first = INFINITY;
  for (const Flow& flow : a.flows) first = std::min(first, flow.finish);
  const double wait =
      std::max(0.0, first - a.clock) * static_cast<double>(a.flows.size()) / adapter_bandwidth_;
  events_.push({a.last + wait, order_++, adapter, a.version, false, Flow{}});
}

}  // namespace longspan::launcher
