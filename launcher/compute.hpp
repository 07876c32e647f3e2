/// Where a run computes: the device of run.device, its operations, and the groups whose tensors lie
/// there. Chosen once, here, and handed down: nothing else in the program asks for a device.
#pragma once

#include <memory>
#include <string>

#include "launcher/run_config.hpp"
#include "model/kernels/kernels.hpp"
#include "parallel/communicator.hpp"
#include "parallel/process_group.hpp"

namespace longspan::launcher {

struct Compute {
  model::Backend backend;
  MakeGroup make_group;
  std::string name;  ///< "cpu", or what the device calls itself
  std::shared_ptr<void> keeps =
      {};  ///< what the backend's references live in; null: all the program

  /// The same with other operations in front, such as ProfiledKernels.
  Compute with(model::Kernels& kernels) const {
    return {{backend.device, kernels, backend.stream}, make_group, name, keeps};
  }
};

/// The processor, and groups over MPI.
Compute cpu_compute();

/// What run.device means on this rank. Throws Error (usage) if it names what is not here. Does not
/// communicate; ranks agree about it by agree().
Compute open_compute(const RunSettings& run);

}  // namespace longspan::launcher
