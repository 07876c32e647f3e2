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
/// The rank that the launcher has given this process, known before MPI starts; 0 without a
/// launcher.
int launcher_rank();

}  // namespace longspan::slurm
