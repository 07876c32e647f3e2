/// What the environment says about who started this process: Slurm, mpirun, or nobody. Standard
/// library only.
#pragma once

#include <optional>
#include <string>

namespace longspan::slurm {

struct SlurmJob {
  std::string id, node_list;
  int restart_count = 0;
};

/// The Slurm job this process runs in, if any.
std::optional<SlurmJob> current_job();
/// Its id as Slurm's commands take it, empty without a job. Of an array's element ARRAY_INDEX: the
/// last element's own id is that of the whole array.
std::string job_address();
/// Whether a launcher (mpirun, srun with PMIx or PMI-2) started this process as one of several
/// ranks.
bool started_by_launcher();
enum class Launcher { kNobody, kMpirun, kSrun, kPmi };
/// The world as whoever started this process counts it.
struct LaunchedWorld {
  Launcher starter = Launcher::kNobody;
  const char* name = "";  ///< of the starter, for messages
  int size = 0;           ///< ranks; 0 = not known
  int rank = 0;
  bool mpi_knows = false;  ///< PMIx or PMI is there for MPI to ask
};
/// From OMPI_COMM_WORLD_SIZE (mpirun), PMI_SIZE (MPICH's and Intel's mpiexec, srun --mpi=pmi2), or
/// the size of a Slurm step. An allocation alone starts nothing: SLURM_NTASKS of a batch script or
/// of salloc does not count.
/// Ask before MPI starts: a library that finds itself alone may write variables of its own.
LaunchedWorld launched_world();
/// The rank that the launcher has given this process, known before MPI starts; 0 without a
/// launcher.
int launcher_rank();

}  // namespace longspan::slurm
