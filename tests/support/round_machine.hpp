/// A machine of round numbers, for plans that are worked out by hand.
#pragma once

#include "launcher/machine_file.hpp"

namespace longspan::testing_support {

/// Products 1e9, attention 1e8 and 2e8 FLOP/s, memory 1e9 bytes/s; links inside a node and between
/// nodes as given.
inline launcher::MachineDescription round_machine(int ranks_per_node,
                                                  const launcher::MachineLink& inside,
                                                  const launcher::MachineLink& between) {
  launcher::MachineDescription m;
  m.name = "round", m.path = "test";
  m.ranks_per_node = ranks_per_node;
  m.fp32.linear_flops = {{1, 1e9}};
  m.fp32.attention_forward_flops = 1e8, m.fp32.attention_backward_flops = 2e8;
  m.fp32.peak_flops = 2e9;
  m.bf16 = m.fp32;
  m.memory_bytes = 1e12, m.pointwise_bandwidth = 1e9, m.program_bytes = 1000;
  m.inside = inside, m.between = between;
  m.write_bandwidth = 1e6, m.read_bandwidth = 1e6;
  return m;
}

}  // namespace longspan::testing_support
