/// Opens the GPU plug-in and says which GPU a rank takes. The program itself needs no CUDA file.
/// Read next: compute.hpp, which decides when; model/kernels/cuda/plugin.hpp, the plug-in's door.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/kernels/cuda/plugin.hpp"
#include "parallel/communicator.hpp"

namespace longspan::launcher {

/// The plug-in, opened at the first call and kept: $LONGSPAN_CUDA_PLUGIN if that is set, else
/// liblongspan_cuda.so beside the program, else on the library path. Throws Error: no such file
/// (usage), the loader's own words if it cannot be loaded, or that it belongs to another build.
model::GpuPlugin& open_gpu_plugin();
/// Of the plug-in that was opened.
std::string gpu_plugin_path();
/// Whether it is worth opening: a driver is installed, or the plug-in was named. Quick.
bool gpu_may_be_here();

/// The GPU of a node's rank `local_rank`: the ranks take the GPUs they see in turn.
int gpu_of(int local_rank, int gpu_count);
/// `pci_buses`: of the GPU that every rank of a node takes. Throws Error (usage) that names
/// run.share-gpu if two take the same one, unless that is on. What counts is the GPU, not its
/// number: Slurm may show every rank another GPU as its only one.
void check_gpu_is_own(const std::vector<std::int64_t>& pci_buses, int gpu_count, bool share_gpu);
/// The same number for the same GPU: what ranks compare.
std::int64_t gpu_identity(const model::GpuDescription& gpu);

/// "NVIDIA H200, 139.8 GiB, compute capability 9.0".
std::string to_string(const model::GpuDescription& gpu);

}  // namespace longspan::launcher
