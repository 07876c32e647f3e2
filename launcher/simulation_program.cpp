#include "launcher/simulation_program.hpp"

#include <algorithm>

#include "launcher/step_time.hpp"

namespace longspan::launcher {
namespace {

using model::AttentionSchemeKind;
using model::Keep;
using model::OptimizerShard;

constexpr double kFp32 = 4;

class Builder {
 public:
  Builder(const StepPieces& pieces, const model::ActivationPlan& keep, const MeshShape& mesh,
          const ProgramOptions& options)
      : p_(pieces), keep_L_(keep.keep_L), options_(options) {
    const int outer = mesh.context / pieces.inner;
    const bool hybrid = pieces.scheme == AttentionSchemeKind::kHybrid;
    shape(Channel::kContext) = {hybrid ? mesh.tensor * pieces.inner : mesh.tensor,
                                hybrid ? outer : mesh.context};
    shape(Channel::kHeads) = {mesh.tensor, hybrid ? pieces.inner : mesh.context};
    shape(Channel::kTensor) = {1, mesh.tensor};
    shape(Channel::kGradients) = {mesh.tensor, mesh.data * mesh.context};
    shape(Channel::kWorld) = {1, mesh.data * mesh.context * mesh.tensor};
    program_.micro_batches = options.micro_batches;
    units_ = static_cast<int>(pieces.layers) + 2;
    gathering_.assign(static_cast<std::size_t>(units_), kNone);
  }

  StepProgram build() {
    compute(options_.data_seconds);
    if (p_.owners > 1) {
      // The last step's update has started them.
      if (p_.shard == OptimizerShard::kStates || p_.shard == OptimizerShard::kGradients)
        for (int unit = 0; unit < units_; ++unit) start_gather(unit);
      if (p_.shard == OptimizerShard::kParameters) start_gather(0);
    }
    for (int i = 0; i < options_.micro_batches; ++i) {
      last_ = i + 1 == options_.micro_batches;
      forward();
      loss();
      backward();
      emit(OpKind::kMicroBatchOver, Channel::kWorld, i);
    }
    while (!reducing_.empty()) wait_oldest_sum();
    // What exchanges take from the cores is spread over the step: here in one piece.
    compute(p_.optimizer + copying_seconds(p_, step_bytes(p_, count_keeps(keep_L_))).all());
    if (shape(Channel::kWorld).size > 1)
      wait(Channel::kWorld, collective(Channel::kWorld, 0, options_.small_latencies));
    return std::move(program_);
  }

 private:
  static constexpr std::int32_t kNone = -1;

  ChannelShape& shape(Channel c) { return program_.channels[static_cast<int>(c)]; }
  void emit(OpKind kind, Channel channel, std::int32_t slot, double amount = 0,
            double latencies = 0) {
    program_.ops.push_back({kind, channel, slot, amount, latencies});
  }
  void compute(double seconds) {
    if (seconds <= 0) return;
    // Neighbours are one, for speed.
    if (!program_.ops.empty() && program_.ops.back().kind == OpKind::kCompute)
      program_.ops.back().amount += seconds;
    else
      emit(OpKind::kCompute, Channel::kWorld, 0, seconds);
  }
  std::int32_t exchange(double bytes, double latencies) {
    emit(OpKind::kExchange, Channel::kContext, program_.exchanges, bytes, latencies);
    return program_.exchanges++;
  }
  void wait_exchange(std::int32_t slot) { emit(OpKind::kWaitExchange, Channel::kContext, slot); }
  std::int32_t collective(Channel channel, double bytes, double latencies) {
    emit(OpKind::kCollective, channel, shape(channel).posted, bytes, latencies);
    return shape(channel).posted++;
  }
  void wait(Channel channel, std::int32_t slot) { emit(OpKind::kWaitCollective, channel, slot); }
  void pass() { emit(OpKind::kPass, Channel::kWorld, passes_++); }

  // Tensor ranks: nothing hides their gathers and sums.
  void tensor(int calls, double more_bytes = 0) {
    if (p_.tensor == 1) return;
    for (int i = 0; i < calls; ++i)
      wait(Channel::kTensor,
           collective(Channel::kTensor, p_.tensor_unit + (i == 0 ? more_bytes : 0), p_.tensor - 1));
  }

  // Weights and gradients.
  double elements(int unit) const {
    return unit == 0            ? p_.embedding_elements
           : unit + 1 == units_ ? p_.end_elements
                                : p_.layer_elements;
  }
  double sent(int unit) const { return kFp32 * elements(unit) * (p_.owners - 1) / p_.owners; }
  void start_gather(int unit) {
    std::int32_t& slot = gathering_[static_cast<std::size_t>(unit)];
    if (slot != kNone) return;
    slot = collective(Channel::kGradients, sent(unit), p_.owners - 1);
  }
  void need(int unit, int next = -1) {
    if (p_.owners == 1 || p_.shard == OptimizerShard::kNone) return;
    const bool comes_and_goes = p_.shard == OptimizerShard::kParameters;
    if (comes_and_goes) start_gather(unit);
    const std::int32_t slot = gathering_[static_cast<std::size_t>(unit)];
    if (slot >= 0) wait(Channel::kGradients, slot);
    gathering_[static_cast<std::size_t>(unit)] = kHere;
    if (comes_and_goes && next >= 0) start_gather(next);
  }
  void done(int unit) {
    if (p_.shard != OptimizerShard::kParameters) return;
    std::int32_t& slot = gathering_[static_cast<std::size_t>(unit)];
    if (slot >= 0) wait(Channel::kGradients, slot);
    slot = kNone;
  }
  void need_gradients() {
    if (p_.shard < OptimizerShard::kGradients) return;
    while (reducing_.size() > 1) wait_oldest_sum();
  }
  void final_gradients(int unit) {
    if (p_.owners == 1 || (p_.shard < OptimizerShard::kGradients && !last_)) return;
    // Summed everywhere: a scatter and a gather.
    const double times = p_.shard == OptimizerShard::kNone ? 2 : 1;
    reducing_.push_back(
        collective(Channel::kGradients, times * sent(unit), times * (p_.owners - 1)));
  }
  void wait_oldest_sum() {
    wait(Channel::kGradients, reducing_.front());
    reducing_.erase(reducing_.begin());
  }

  // Attention.
  void ring_forward(double bytes, int ranks, double seconds) {
    if (ranks == 1) return compute(seconds);
    if (p_.windowed) {
      const auto rows = exchange(bytes, 1);
      compute(seconds);
      return wait_exchange(rows);
    }
    const double hop = seconds / ranks, message = bytes / (ranks - 1);
    for (int left = ranks - 1; left > 0;) {
      const int n = std::min(options_.together, left);
      const auto keys = exchange(n * message, n);
      compute(n * hop);
      wait_exchange(keys);
      left -= n;
    }
    compute(hop);
  }
  void ring_backward(double keys_bytes, double sums_bytes, int ranks, double seconds) {
    if (ranks == 1) return compute(seconds);
    if (p_.windowed) {
      const auto rows = exchange(keys_bytes, 1);
      compute(seconds);
      wait_exchange(rows);
      return wait_exchange(exchange(sums_bytes, 1));
    }
    const double hop = seconds / ranks, message = keys_bytes / (ranks - 1),
                 sum = sums_bytes / ranks;
    std::int32_t keys = exchange(message, 1);
    compute(hop);
    std::int32_t sums = exchange(sum, 1);
    wait_exchange(keys);
    for (int left = ranks - 2; left > 0;) {
      const int n = std::min(options_.together, left);
      keys = exchange(n * message, n);
      compute(n * hop);
      wait_exchange(sums);
      sums = exchange(n * sum, n);
      wait_exchange(keys);
      left -= n;
    }
    compute(hop);
    wait_exchange(sums);
    wait_exchange(exchange(sum, 1));
  }
  void swap_heads(int times, double bytes) {
    for (int i = 0; i < times; ++i)
      wait(Channel::kHeads, collective(Channel::kHeads, bytes / times, 1));
  }
  void attention_forward() {
    if (p_.context == 1) return compute(p_.attention_forward);
    switch (p_.scheme) {
      case AttentionSchemeKind::kAllgather: {
        const auto keys = collective(Channel::kContext, p_.context_forward, 1);
        compute(p_.attention_forward / p_.context);
        wait(Channel::kContext, keys);
        return compute(p_.attention_forward * (p_.context - 1) / p_.context);
      }
      case AttentionSchemeKind::kUlysses:
      case AttentionSchemeKind::kHybrid: {
        // Queries, keys and values there, the output back.
        const bool hybrid = p_.scheme == AttentionSchemeKind::kHybrid;
        const double bytes = hybrid ? p_.heads_forward : p_.context_forward;
        swap_heads(1, bytes / 2);
        ring_forward(p_.context_forward - bytes, hybrid ? p_.context / p_.inner : 1,
                     p_.attention_forward);
        return swap_heads(1, bytes / 2);
      }
      case AttentionSchemeKind::kAuto:
      case AttentionSchemeKind::kRing:
        return ring_forward(p_.context_forward, p_.context, p_.attention_forward);
    }
  }
  void attention_backward() {
    if (p_.context == 1) return compute(p_.attention_backward);
    switch (p_.scheme) {
      case AttentionSchemeKind::kAllgather: {
        const auto keys = collective(Channel::kContext, p_.context_forward, 1);
        compute(p_.attention_backward / p_.context);
        wait(Channel::kContext, keys);
        compute(p_.attention_backward * (p_.context - 1) / p_.context);
        return wait(Channel::kContext, collective(Channel::kContext, p_.context_forward, 1));
      }
      case AttentionSchemeKind::kUlysses:
      case AttentionSchemeKind::kHybrid: {
        const bool hybrid = p_.scheme == AttentionSchemeKind::kHybrid;
        const double bytes = hybrid ? p_.heads_backward : p_.context_backward;
        const double keys = p_.context_forward - p_.heads_forward;
        swap_heads(2, bytes * 2 / 3);
        ring_backward(keys, p_.context_backward - bytes - keys, hybrid ? p_.context / p_.inner : 1,
                      p_.attention_backward);
        return swap_heads(1, bytes / 3);
      }
      case AttentionSchemeKind::kAuto:
      case AttentionSchemeKind::kRing:
        return ring_backward(p_.context_forward, p_.context_backward - p_.context_forward,
                             p_.context, p_.attention_backward);
    }
  }
  /// Backward has to exchange again what forward did and was not kept.
  void exchange_again() {
    if (p_.context_again > 0) swap_heads(1, p_.context_again);
  }

  // The step.
  void forward() {
    pass();
    need(0, 1);
    compute(p_.embedding);
    tensor(1);
    done(0);
    for (int layer = 0; layer < p_.layers; ++layer) {
      pass();
      need(layer + 1, layer + 2);
      compute(p_.pointwise_forward / 2);
      tensor(1);
      compute(p_.products.qkv);
      attention_forward();
      compute(p_.products.output);
      tensor(1);
      compute(p_.pointwise_forward / 2);
      tensor(1);
      compute(p_.products.up + p_.products.down);
      tensor(1);
      if (layer + 1 < p_.layers) done(layer + 1);  // the last one's backward comes next
    }
  }
  void loss() {
    pass();
    need(units_ - 1, options_.tied ? 0 : -1);
    if (options_.tied) need(0);
    need_gradients();
    tensor(2, p_.tensor_loss);
    compute(p_.loss());
    done(units_ - 1);
    if (options_.tied) done(0);
    final_gradients(units_ - 1);
  }
  void backward() {
    for (int layer = static_cast<int>(p_.layers) - 1; layer >= 0; --layer) {
      pass();
      need(layer + 1, layer > 0 ? layer : -1);
      need_gradients();
      recompute(keep_L_[static_cast<std::size_t>(layer)]);
      tensor(2);
      compute(2 * (p_.products.up + p_.products.down) + p_.pointwise_backward / 2);
      tensor(2);
      compute(2 * p_.products.output);
      attention_backward();
      tensor(1);
      compute(2 * p_.products.qkv);
      tensor(1);
      compute(p_.pointwise_backward / 2);
      done(layer + 1);
      final_gradients(layer + 1);
    }
    need_gradients();
    tensor(1);
    final_gradients(0);
  }
  void recompute(Keep keep) {
    if (keep == Keep::kAll) return compute(p_.activation);
    compute(p_.pointwise_forward / 2);
    tensor(1);
    compute(p_.products.qkv);
    if (keep == Keep::kBlock)
      attention_forward();
    else
      exchange_again();
    compute(p_.products.output);
    tensor(1);
    compute(p_.products.up + p_.pointwise_forward / 2);
  }

  static constexpr std::int32_t kHere = -2;
  const StepPieces& p_;
  const std::vector<Keep>& keep_L_;
  ProgramOptions options_;
  StepProgram program_;
  int units_ = 0;
  bool last_ = true;
  std::int32_t passes_ = 0;
  std::vector<std::int32_t> gathering_;  ///< of each unit: kNone, on its way (its slot), kHere
  std::vector<std::int32_t> reducing_;   ///< oldest first
};

}  // namespace

StepProgram step_program(const StepPieces& pieces, const model::ActivationPlan& keep,
                         const MeshShape& mesh, const ProgramOptions& options) {
  return Builder(pieces, keep, mesh, options).build();
}

}  // namespace longspan::launcher
