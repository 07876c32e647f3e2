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

/// Trains it with its sequence shared by all ranks of each node, and compares with what `machine`,
/// corrected by measure_in_step(), says: seconds that a byte sent takes from a rank's cores; of the
/// slowest. 0 where ranks have nodes of their own. About a second. Collective; the same on every
/// rank.
double measure_copying(const MachineDescription& machine, const Communicator& world,
                       const Communicator& node);

}  // namespace longspan::launcher
