/// How fast single operations are: products of several widths and both precisions, attention of
/// several lengths, and what touches each element once. Read next: calibrate.hpp, which measures
/// the rest; calibrate_step.hpp, which corrects these rates by whole steps.
#pragma once

#include "launcher/machine_file.hpp"
#include "model/layer.hpp"
#include "parallel/communicator.hpp"

namespace longspan::launcher {

/// Fills in the tables and the point-wise bandwidth of `machine`: of a node (the sums over its
/// ranks), of the slowest node. All ranks compute at the same time. A few seconds. Collective; the
/// same on every rank.
void measure_rates(MachineDescription& machine, const model::Backend& backend,
                   const Communicator& world, const Communicator& node);

}  // namespace longspan::launcher
