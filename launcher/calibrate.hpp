/// `longspan doctor --calibrate`: how fast this machine is at what a training step consists of, as
/// a description of a machine. Real kernels, all ranks at the same time, half a minute. Read next:
/// machine_file.hpp.
#pragma once

#include <string>
#include <vector>

#include "launcher/machine_file.hpp"
#include "parallel/communicator.hpp"

namespace longspan::launcher {

/// Measures products of several widths and both precisions, attention of several lengths,
/// point-wise operations, links, and a file in `folder`; then steps of a small model, by which the
/// rates of the operations are corrected (calibrate_step.hpp). Rates of a node are the sums over
/// its ranks; of several nodes the slowest counts. With one rank, or on one node, the links that do
/// not exist take over what the others measured (alone: a copy within memory), and the text says
/// so. Collective; the same on every rank.
MachineDescription measure_machine(const Communicator& world, const std::string& folder);

/// INI text that parse_machine() reads back. `how`: of the measurement, for its comment.
std::string machine_ini(const MachineDescription& machine, const std::string& how);

/// Measures and writes `path` (empty: local.ini in user_folder()), whole or not at all; returns the
/// path. Collective; throws AgreedError.
std::string calibrate(const Communicator& world, const std::string& path);

}  // namespace longspan::launcher
