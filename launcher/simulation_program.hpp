/// The operations of one rank in one step, in the order of the program; all ranks have the same.
/// Sources of the order: launcher/train.cpp, model/transformer.cpp, model/block.cpp,
/// model/attention_ring.cpp, model/sharded_weights.cpp, model/sharded_gradients.cpp. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "launcher/step_pieces.hpp"
#include "model/activation_plan.hpp"

namespace longspan::launcher {

/// Groups in which operations run one after the other.
enum class Channel : std::uint8_t { kContext, kHeads, kTensor, kGradients, kWorld };
constexpr int kChannels = 5;

struct ChannelShape {
  int stride = 1, size = 1;  ///< of its groups: rank, rank + stride, ...
  std::int32_t posted = 0;   ///< collectives of a group in a step
};

enum class OpKind : std::uint8_t {
  kCompute,     ///< amount: seconds
  kExchange,    ///< to the next of the ring, from the one before; amount: bytes sent
  kCollective,  ///< amount: bytes sent by each
  kWaitExchange,
  kWaitCollective,
  kPass,  ///< a layer's pass begins: the rank's speed changes
  kMicroBatchOver,
};

struct Op {
  OpKind kind;
  Channel channel;
  std::int32_t slot;  ///< which exchange (of all) or collective (of its channel); kPass: number
  double amount;
  double latencies;  ///< of the link, for exchanges and collectives
};

struct StepProgram {
  std::vector<Op> ops;
  ChannelShape channels[kChannels];
  std::int32_t exchanges = 0;
  int micro_batches = 1;
  const ChannelShape& shape(Channel c) const { return channels[static_cast<int>(c)]; }
};

/// `micro_batches`: how many are played, at least 1; `together`: hops of a ring that are one
/// message. `tied`: the embedding is used again by the loss. `small_latencies`: of all small
/// reductions at the end; `data_seconds`: reading that nothing hides.
struct ProgramOptions {
  int micro_batches = 1, together = 1;
  bool tied = false;
  double small_latencies = 0, data_seconds = 0;
};
StepProgram step_program(const StepPieces& pieces, const model::ActivationPlan& keep,
                         const MeshShape& mesh, const ProgramOptions& options);

}  // namespace longspan::launcher
