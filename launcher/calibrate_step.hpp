/// What operations take inside a training step, against alone: between other operations the caches
/// are cold, arrays are new, and there are copies and sums beside the operations. Read next:
/// calibrate.hpp, which corrects its rates by it.
#pragma once

#include "launcher/machine_file.hpp"
#include "parallel/communicator.hpp"

namespace longspan::launcher {

/// Trains a small model, the whole of it on every rank and on all ranks at the same time; where
/// ranks share nodes, then with its sequence shared by all ranks of each node, then with its
/// weights shared by as many of them as the model allows, these two in two sizes; and all of it
/// again, in turns. Corrects the rates of `machine`, whose links are measured, by the first; what
/// the others take longer than planned by these rates is what a byte takes from a rank's cores
/// (MachineLink), 0 where ranks have nodes of their own. Of the slowest rank. Ten to thirty
/// seconds. Collective; the same on every rank.
void correct_by_steps(MachineDescription& machine, const Communicator& world,
                      const Communicator& node);

}  // namespace longspan::launcher
