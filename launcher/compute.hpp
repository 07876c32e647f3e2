/// Where a run computes: the device of run.device, its operations, and the groups whose tensors lie
/// there. Chosen once, here, and handed down: nothing else in the program asks for a device.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "launcher/run_config.hpp"
#include "model/kernels/kernels.hpp"
#include "parallel/communicator.hpp"
#include "parallel/offload_stack.hpp"
#include "parallel/process_group.hpp"

namespace longspan::model {
class GpuBackend;
}

namespace longspan::launcher {

struct Compute {
  model::Backend backend;
  MakeGroup make_group;
  std::string name;                  ///< "cpu", or what the device calls itself
  std::string line = {};             ///< for the log: the device, or why it is the CPU
  std::string pci_bus = {};          ///< of the GPU; empty on the CPU
  model::GpuBackend* gpu = nullptr;  ///< null on the CPU
  int ranks_on_gpu = 1;              ///< that share this rank's GPU, itself among them
  /// Where the device's memory waits in the host's; null: it is the host's.
  std::function<std::unique_ptr<OffloadStack>()> make_host_offload = {};
  std::shared_ptr<void> keeps =
      {};  ///< what the backend's references live in; null: all the program

  /// The same with other operations in front, such as ProfiledKernels.
  Compute with(model::Kernels& kernels) const {
    return {{backend.device, kernels, backend.stream},
            make_group,
            name,
            line,
            pci_bus,
            gpu,
            ranks_on_gpu,
            make_host_offload,
            keeps};
  }
};

/// The processor, and groups over MPI.
Compute cpu_compute();

/// What run.device means on this rank: auto takes GPUs if every rank of `world` has one of its own.
/// Throws the same Error on every rank if run.device=cuda and one cannot have its GPU. Collective.
Compute open_compute(const RunSettings& run, const Communicator& world);

}  // namespace longspan::launcher
