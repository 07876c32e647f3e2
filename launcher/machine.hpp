/// What this rank may use of its node: cores, threads, memory, and how fast a matrix product really
/// is here.
#pragma once

#include <cstdint>
#include <string>

#include "model/kernels/kernels.hpp"
#include "parallel/communicator.hpp"

namespace longspan::launcher {

/// Cores this process may run on (its affinity mask).
int available_cores();

/// Which cores the ranks of a node are bound to.
struct AffinityMasks {
  int different = 1;  ///< masks; of ranks that nobody bound: one
  int sharers = 1;    ///< ranks with the same mask as this one, this one too
};
/// Collective over `node`.
AffinityMasks affinity_masks(const Communicator& node);

/// Threads for this rank: `requested`; when 0, the cores of its affinity mask / the ranks of the
/// node that have the same mask. Sets OpenMP accordingly. Collective over `world`.
int set_threads(int requested, const Communicator& world);

/// FLOP/s of all ranks together in one matrix product of 1024^3 each, all at the same time, best of
/// three: the denominator of MFU. About 50 ms. Collective over `world`.
double measure_peak_flops(const model::Backend& backend, bool bf16, const Communicator& world);

/// Largest resident memory of this process so far, bytes (VmHWM).
std::int64_t peak_resident_bytes();

/// Resident memory of this process now, bytes (VmRSS).
std::int64_t resident_bytes();

/// "Intel(R) Xeon(R) Platinum 8581C CPU @ 2.10GHz"; "unknown" where the system does not tell.
std::string processor_name();

/// "longspan 0.1.0 (git revision), Open MPI 4.1.4, oneDNN 2.6.3, HDF5 1.10.8, g++ 12.2.0": for logs
/// and checkpoints.
std::string version_line();

}  // namespace longspan::launcher
