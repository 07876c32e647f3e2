/// What operations take inside a training step, against alone: between other operations the caches
/// are cold, arrays are new, and there are copies and sums beside the operations. Read next:
/// calibrate.hpp, which corrects its rates by it.
#pragma once

#include "launcher/machine_file.hpp"
#include "parallel/communicator.hpp"

namespace longspan::launcher {

/// Seconds in a step / seconds by the rates.
struct InStep {
  double products = 1, attention = 1, pointwise = 1;
};

/// Trains a small model, the whole of it on every rank and on all ranks at the same time, and
/// compares its steps with what `alone` says; of the slowest rank. About two seconds. Collective;
/// the same on every rank.
InStep measure_in_step(const MachineDescription& alone, model::Precision precision,
                       const Communicator& world);

/// Seconds that a byte sent takes from a rank's cores.
struct Copying {
  double exchanges = 0;  ///< of keys, values and gradients
  double tensor = 0;     ///< in gathers and sums over tensor ranks
};

/// Trains it with its sequence shared by all ranks of each node, then with its weights shared by as
/// many of them as the model allows, and compares with what `machine`, corrected by
/// measure_in_step(), says; of the slowest rank. 0 where ranks have nodes of their own. About two
/// seconds. Collective; the same on every rank.
Copying measure_copying(const MachineDescription& machine, const Communicator& world,
                        const Communicator& node);

}  // namespace longspan::launcher
